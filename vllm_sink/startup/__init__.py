"""From the flags of ``vllm serve`` to an engine under the policy."""
