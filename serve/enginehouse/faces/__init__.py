"""The ways in: each decodes a request, has the data plane answer it, and encodes the answer."""
