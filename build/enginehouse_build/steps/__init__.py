"""The steps of a build: each in a process of its own, kept by what went in."""
