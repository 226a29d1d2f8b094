"""Workarounds for faults of vLLM itself; each says upstream's issue, and when it can go."""
