"""The deployments that host engines: loading, batching, autoscaling, and what replicas publish."""
