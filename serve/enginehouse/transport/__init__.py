"""Connections between routers and replicas: frames, and the end that each of the two holds."""
