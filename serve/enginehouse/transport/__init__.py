"""Connections between routers and replicas: wire format, handshake, and the code of each end."""
