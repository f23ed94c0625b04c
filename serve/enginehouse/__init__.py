"""enginehouse."""
