"""The policy in front of the engine: what the HTTP server understands."""
