"""Requests: where they enter, how they are checked, and what the engine core gets."""
