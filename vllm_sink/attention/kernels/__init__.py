"""Triton kernels; imported only where a provider that needs them was chosen."""
