"""Who computes: the running application, or engines of the job's own."""
