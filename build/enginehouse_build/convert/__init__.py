"""From the reference to each format and precision."""
