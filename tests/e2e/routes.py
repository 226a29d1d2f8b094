"""Every POST route of a server's app: a request for it, or why it generates nothing."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.engines import random_tokens

MODEL = "tiny"
SYSTEM = "Answer in verse."
#: The template: a BOS, a role token, the text (a token a letter), an end token.
SYSTEM_TOKENS = 1 + 1 + len(SYSTEM) + 1
CHAT = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Tell me of the sea."}]
PROMPT = random_tokens(40)

#: A short request for each generating route, and where its options go.
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 3},
    "/v1/chat/completions": {"messages": CHAT, "max_tokens": 3},
    "/v1/chat/completions/batch": {"messages": [CHAT, CHAT], "max_tokens": 3},
    "/v1/responses": {
        "instructions": SYSTEM,
        "input": "Tell me of the sea.",
        "max_output_tokens": 16,
    },
    "/v1/messages": {"model": MODEL, "system": SYSTEM, "messages": CHAT[1:], "max_tokens": 3},
    "/inference/v1/generate": {"token_ids": PROMPT, "sampling_params": {"max_tokens": 3}},
    "/invocations": {"prompt": PROMPT, "max_tokens": 3},
}
CHATS = tuple(path for path in GENERATING if path.startswith("/v1/") and path != "/v1/completions")
#: Those that stream.
STREAMING = tuple(path for path in GENERATING if not path.endswith("/batch"))

#: Routes that reach no engine's requests, or are tested elsewhere.
OTHERS = {
    "/tokenize": "tokens of a text",
    "/detokenize": "text of tokens",
    "/ping": "liveness",
    "/v1/messages/count_tokens": "tokens of a chat",
    "/v1/chat/completions/render": "a rendered prompt",
    "/v1/completions/render": "a rendered prompt",
    "/v1/messages/render": "a rendered prompt",
    "/v1/responses/render": "a rendered prompt",
    "/v1/chat/completions/derender": "a chat of tokens",
    "/v1/completions/derender": "a text of tokens",
    "/v1/responses/{response_id}/cancel": "ends a response",
    "/inference/v1/abort_requests": "ends requests",
    "/scale_elastic_ep": "an operator's; refused without elastic expert parallelism",
    "/is_scaling_elastic_ep": "an operator's",
    "/v1/systemone": "refused: no structured decisions with this model",
    "/generative_scoring": "one token of each item; its options are its own",
}


def with_options(path: str, options: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request of this route with these options."""
    body = json.loads(json.dumps(GENERATING[path])) | more
    if path == "/inference/v1/generate":
        body["sampling_params"]["extra_args"] = options
    else:
        body["vllm_xargs"] = options
    return body
