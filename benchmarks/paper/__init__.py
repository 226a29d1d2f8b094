"""The experiments of StreamingLLM (arXiv 2309.17453), through the served engine."""
