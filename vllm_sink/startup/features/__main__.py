"""``python -m vllm_sink.startup.features`` writes ``docs/features.md``."""

from vllm_sink.startup.features.page import PAGE, render

if __name__ == "__main__":
    PAGE.write_text(render())
