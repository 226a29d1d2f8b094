"""Workarounds for bugs in vLLM; each names the upstream issue, and when it can be removed."""
