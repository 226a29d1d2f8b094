"""The attention backend: one pass over pinned sinks and a rolling window of paged keys."""
