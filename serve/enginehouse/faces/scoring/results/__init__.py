"""What a job leaves: files of results, rejected rows, and the report."""
