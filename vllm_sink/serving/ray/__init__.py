"""Many replicas: Ray Serve's own LLM library (``ray.serve.llm``) with streams that find their way.

::

    client ── x-session-id ──> ingress (key, reasons) ── Ray's consistent hash ──> replica: vLLM
                                                                                    │
              Ray Serve's controller <── load: live streams, promised blocks ───────┘

:func:`app` is for ``serve run`` and for a RayService: it reads the file that ``vllm serve
--config`` reads. :func:`build` takes ``LLMConfig`` arguments, as ``ray.serve.llm`` does.
Nothing here imports vLLM before it must: Ray builds applications where there may be no GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["app", "build"]


def app(args: dict[str, Any]) -> Application:
    """An application from a file of ``vllm serve`` flags.

    Args:
        args: see :class:`~vllm_sink.serving.ray.settings.AppArgs`; all have defaults.

    Raises:
        PolicyError, UnsupportedError: an argument, a flag, or the cluster does not allow it.
    """
    from vllm_sink.serving.ray import settings

    asked = settings.AppArgs.read(args)
    return build(asked.serving_args(), wait_for_resources_s=asked.wait_for_resources_s)


def build(llm_serving_args: dict[str, Any], *, wait_for_resources_s: float = 30.0) -> Application:
    """An OpenAI-compatible application: ``ray.serve.llm``'s, with this project's replicas.

    Args:
        llm_serving_args: as for ``ray.serve.llm.build_openai_app``: ``llm_configs``, and optionally
            ``ingress_deployment_config``. Whatever they name themselves is left as it is.
        wait_for_resources_s: how long the cluster may take to have what the replicas need.

    Raises:
        PolicyError: the cluster has not enough.
        UnsupportedError: this Ray lacks something that is leaned on.
    """
    from vllm_sink.compat import probes

    probes.require_ray()
    from vllm_sink.serving.ray import builder  # imports what was probed

    return builder.build(llm_serving_args, wait_for_resources_s)
