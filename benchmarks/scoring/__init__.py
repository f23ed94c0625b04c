"""Batch scoring beside what one would write by hand for the same files: `python -m benchmarks.scoring`."""
