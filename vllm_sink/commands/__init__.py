"""The ``vllm-sink`` command's parts, one file each: ``add`` its arguments, ``run`` it."""
