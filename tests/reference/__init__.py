"""The oracle: StreamingLLM as the paper's own code does it, one token at a time.

It shares nothing with vllm_sink, and computes the policy in another way: keys are cached unrotated,
evicted one by one, and rotated anew at every step by their place in the cache.
"""

from tests.reference.oracle import SinkReference

__all__ = ["SinkReference"]
