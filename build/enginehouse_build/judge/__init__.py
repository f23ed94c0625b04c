"""What an artifact is worth: how far its answers are from the reference, how fast it is, which one is chosen."""
