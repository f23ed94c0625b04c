"""The processes that score: handed units, asked with caution for what may kill them."""
