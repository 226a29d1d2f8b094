"""Attention sinks (StreamingLLM, arXiv 2309.17453) as a KV policy for an unmodified vLLM."""

__version__ = "0.1.0"
