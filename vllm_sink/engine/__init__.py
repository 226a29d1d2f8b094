"""The policy inside the engine: what a request asks for, and the scheduler that honours it."""
