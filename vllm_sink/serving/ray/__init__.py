"""Many replicas: Ray Serve's own LLM library (``ray.serve.llm``), with sticky sessions for streams.

::

    client ── x-session-id ──> ingress (key, errors) ── Ray's consistent hash ──> replica: vLLM
                                                                                    │
              Ray Serve's controller <── load: live streams, promised blocks ───────┘

:func:`app` is for ``serve run`` and for a RayService: it reads the file that ``vllm serve
--config`` reads. :func:`build` takes ``LLMConfig`` arguments, as ``ray.serve.llm`` does.
vLLM is imported as late as possible: Ray builds applications where there may be no GPU.
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

    app_args = settings.AppArgs.read(args)
    return build(app_args.serving_args(), wait_for_resources_s=app_args.wait_for_resources_s)


def build(llm_serving_args: dict[str, Any], *, wait_for_resources_s: float = 30.0) -> Application:
    """An OpenAI-compatible application: ``ray.serve.llm``'s, with this project's replicas.

    Args:
        llm_serving_args: as for ``ray.serve.llm.build_openai_app``: ``llm_configs``, and optionally
            ``ingress_deployment_config``. What they set stays; defaults fill in the rest.
        wait_for_resources_s: seconds to wait until the cluster has room for the replicas.

    Raises:
        PolicyError: the cluster has no room for them.
        UnsupportedError: this Ray lacks something that is used here.
    """
    from vllm_sink.compat import probes

    probes.require_ray()
    from vllm_sink.serving.ray import builder  # imports what has been probed

    return builder.build(llm_serving_args, wait_for_resources_s)
