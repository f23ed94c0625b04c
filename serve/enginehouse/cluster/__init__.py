"""Ray clusters: connecting to one or starting one, and changing what it serves."""
