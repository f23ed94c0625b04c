"""Where it runs: connecting to a Ray cluster or starting one, changing what it serves."""
