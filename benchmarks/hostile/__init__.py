"""Hostile clients beside a stream of good requests: what the good ones notice, and what it costs."""
