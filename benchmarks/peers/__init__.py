"""The peers: other implementations of endless streams, measured the same way."""
