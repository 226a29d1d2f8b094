"""The peers side by side: other implementations of endless streams, measured alike."""
