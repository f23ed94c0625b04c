"""The ways in: each decodes a request, asks the routing floor, and encodes the answer."""
