"""Batch scoring: every row of a dataset through the live backends."""
