"""The commands of ``vllm-sink``, one file each, and their parts.

The command line is read from the annotations of each command's function, so its file imports only
what is fast; vLLM, the HTTP clients and rich are imported where they are used.
"""
