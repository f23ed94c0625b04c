"""Calls from Python: other Ray jobs, tasks and actors."""
