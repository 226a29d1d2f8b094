"""The arguments of :func:`vllm_sink.serving.ray.app`, and ``vllm serve``'s flags for Ray."""

from __future__ import annotations

import argparse
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vllm_sink import compat, plugin
from vllm_sink.errors import PolicyError, UnsupportedError

#: Where the file of flags lies, unless ``config`` says so.
CONFIG_VARIABLE = "VLLM_SINK_CONFIG"

# The flags of vLLM's server, behind Ray. Ray runs vLLM's engine, init_app_state and the serving
# classes for its own endpoints (ray/llm/_internal/serve/core/ingress/ingress.py); the HTTP server,
# the app and its middleware are Ray's. So each field of vLLM's FrontendArgs is one of three.

#: Read by init_app_state or by what it makes: as with ``vllm serve``.
READ = (
    "chat_template",
    "chat_template_content_format",
    "cohere_format",
    "default_chat_template_kwargs",
    "enable_auto_tool_choice",
    "enable_force_include_usage",
    "enable_log_deltas",
    "enable_log_outputs",
    "enable_per_request_metrics",
    "enable_prompt_tokens_details",
    "exclude_tools_when_tool_choice_none",
    "fingerprint_mode",
    "fingerprint_value",
    "max_log_len",
    "response_role",
    "return_tokens_as_token_ids",
    "tool_call_parser",
    "tool_strict_level",
    "trust_request_chat_template",
    "trust_request_mm_kwargs",
)

#: Left out, so that one file serves ``vllm serve`` too. By what has their meaning behind Ray.
RAYS_OWN = {
    "host": "http_options of Ray Serve",
    "port": "http_options of Ray Serve",
    "uds": "http_options of Ray Serve",
    "api_server_count": "min_replicas and max_replicas: a replica has one front end",
    "shutdown_timeout": "graceful_shutdown_timeout_s, which is set to it",
}

_IN_FRONT = "Ray's proxy takes the requests; do it in a proxy in front of Ray"
_TLS = "Ray's proxy takes the connections; set ssl_* in Ray Serve's http_options"
_NO_TLS = "Ray's proxy takes the connections and has no such option; end TLS in front of Ray"
_CORS = "Ray's ingress answers every origin; restrict them in a proxy in front of Ray"
_LOG = "Ray's proxy takes the requests; set logging_config of Ray Serve"
_REPLICAS = "the replicas and their health are Ray's; set min_replicas and max_replicas"
_DOCS = "the ingress is Ray's, with Ray's /docs; hide them in a proxy in front of Ray"


def _no_endpoint(path: str) -> str:
    return f"Ray's ingress has no {path}; remove the flag, or use vllm serve"


#: Refused where set, because they would be ignored. By the reason, and what to do instead.
REFUSED = {
    "allow_credentials": _CORS,
    "allowed_headers": _CORS,
    "allowed_methods": _CORS,
    "allowed_origins": _CORS,
    "anthropic_disabled_thinking_effort": _no_endpoint("/v1/messages"),
    "api_key": "a key in a file is in Ray's messages; set VLLM_API_KEY, from a secret",
    "cohere_is_reasoning_model": _no_endpoint("/cohere/v2/chat"),
    "data_parallel_supervisor_port": _REPLICAS,
    "disable_access_log_for_endpoints": _LOG,
    "disable_fastapi_docs": _DOCS,
    "disable_uvicorn_access_log": _LOG,
    "dp_supervisor_probe_failure_threshold": _REPLICAS,
    "dp_supervisor_probe_interval_s": _REPLICAS,
    "dp_supervisor_probe_timeout_s": _REPLICAS,
    "enable_flash_late_interaction": "only pooling models have scores, and no policy takes them; "
    "remove the flag",
    "enable_offline_docs": _DOCS,
    "enable_request_id_headers": "Ray's proxy sends X-Request-ID always; remove the flag",
    "enable_scale_out": _no_endpoint("/inference/v1/generate, /render or /derender"),
    "enable_server_load_tracking": _no_endpoint("/load"),
    "enable_ssl_refresh": _NO_TLS,
    "enable_tokenizer_info_endpoint": _no_endpoint("/tokenizer_info"),
    "grpc": "Ray's proxy speaks HTTP with the application; remove the flag, or use vllm serve",
    "grpc_port": "it needs vLLM's Rust front end; remove the flag, or use vllm serve",
    "h11_max_header_count": _IN_FRONT,
    "h11_max_incomplete_event_size": _IN_FRONT,
    "headless": "each replica is whole; remove the flag, and set min_replicas",
    "log_error_stack": "Ray's ingress answers errors and logs their stack; remove the flag",
    "lora_modules": "Ray's ingress knows the models of its LLMConfigs alone; give one with a "
    "lora_config to vllm_sink.serving.ray.build",
    "middleware": _IN_FRONT,
    "root_path": "the paths are Ray's; set route_prefix of the application",
    "sse_keep_alive_interval": "a replica sends tokens alone; let the read timeout of proxies in "
    "front of Ray be longer than a stream may wait",
    "ssl_ca_certs": _TLS,
    "ssl_cert_reqs": _NO_TLS,
    "ssl_certfile": _TLS,
    "ssl_ciphers": _NO_TLS,
    "ssl_keyfile": _TLS,
    "tokens_only": _no_endpoint("/inference/v1/generate"),
    "tool_parser_plugin": "vllm serve's launcher imports it, and there is none; register the "
    "parser in an entry point of vllm.general_plugins",
    "tool_server": _no_endpoint("/v1/responses"),
    "uvicorn_log_level": _LOG,
}


@dataclass(frozen=True)
class AppArgs:
    """What ``serve run vllm_sink.serving.ray:app NAME=VALUE …`` takes.

    Attributes:
        config: a YAML file of ``vllm serve`` flags, the one that ``vllm serve --config`` takes.
        min_replicas: at least so many.
        max_replicas: at most so many; between the two the load decides.
        target_load: the part of a replica's room (streams that fit, blocks) to fill.
        cpus: of Ray's, for each replica besides its engine's.
        wait_for_resources_s: how long the cluster may take to have what the replicas need.
    """

    config: str = ""
    min_replicas: int = 1
    max_replicas: int = 1
    target_load: float = 0.8
    cpus: float = 1.0
    wait_for_resources_s: float = 30.0

    @classmethod
    def read(cls, args: dict[str, Any]) -> AppArgs:
        """Check what was given; on a command line all of it is text.

        Raises:
            PolicyError: an argument is unknown, of the wrong type or out of range.
        """
        types: dict[str, Any] = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        read: dict[str, Any] = {}
        for name, value in args.items():
            if name not in types:
                raise PolicyError(name, value, f"the arguments are {', '.join(types)}")
            try:
                read[name] = types[name](value)
            except (TypeError, ValueError):
                raise PolicyError(name, value, f"{types[name].__name__}") from None
        read.setdefault("config", os.environ.get(CONFIG_VARIABLE, ""))
        # One number means so many replicas, no less and no more.
        read.setdefault("max_replicas", max(1, read.get("min_replicas", 1)))
        asked = cls(**read)
        asked._check()
        return asked

    def _check(self) -> None:
        if not Path(self.config).is_file():
            raise PolicyError(
                "config",
                self.config,
                f"a YAML file of vllm serve's flags, here or in {CONFIG_VARIABLE}",
            )
        if self.min_replicas < 0:
            raise PolicyError("min_replicas", self.min_replicas, "an integer of at least 0")
        if self.max_replicas < max(1, self.min_replicas):
            raise PolicyError(
                "max_replicas", self.max_replicas, f"{max(1, self.min_replicas)} or more"
            )
        if not 0 < self.target_load <= 1:
            raise PolicyError("target_load", self.target_load, "above 0, to 1")

    def serving_args(self) -> dict[str, Any]:
        """The arguments of :func:`vllm_sink.serving.ray.build`."""
        flags = Flags.read(self.config)
        return {
            "llm_configs": [
                {
                    "model_loading_config": {
                        "model_id": flags.served_name,
                        "model_source": flags.model,
                    },
                    "engine_kwargs": flags.engine_kwargs,
                    **({"accelerator_config": {"kind": "cpu"}} if _is_cpu() else {}),
                    "deployment_config": {
                        "ray_actor_options": {"num_cpus": self.cpus},
                        "autoscaling_config": {
                            "min_replicas": self.min_replicas,
                            "max_replicas": self.max_replicas,
                            "policy": {"policy_kwargs": {"target_load": self.target_load}},
                        },
                        **flags.grace(),
                    },
                }
            ],
        }


@dataclass(frozen=True)
class Flags:
    """What a file of ``vllm serve`` flags says, read by vLLM's own parser.

    Attributes:
        model: a folder or a name.
        served_name: as clients call it.
        engine_kwargs: the flags that differ from vLLM's defaults.
        shutdown_timeout: seconds that streams may take to finish when their replica goes.
    """

    model: str
    served_name: str
    engine_kwargs: dict[str, Any]
    shutdown_timeout: int

    @classmethod
    def read(cls, path: str) -> Flags:
        """Read the file.

        Raises:
            PolicyError, UnsupportedError: a flag is unknown or not allowed, by its name.
        """
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        plugin.register()
        parser = compat.serve_arguments().make_arg_parser(
            FlexibleArgumentParser(exit_on_error=False)
        )

        def refuse(message: str) -> NoReturn:
            reason = message.removeprefix("vllm serve: error: ")
            raise UnsupportedError(f"{path}: {reason}")

        parser.error = refuse  # it would end the process, which is Ray's
        try:
            args = parser.parse_args(["--config", path])
        except argparse.ArgumentError as error:
            refuse(str(error))
        model = args.model_tag or args.model
        unasked = parser.parse_args(["--model", model])
        try:
            _refuse_ignored(args, unasked)
            given = _fields(args)
        except (SystemExit, UnsupportedError) as error:
            refuse(str(error))
        defaults = _fields(unasked)
        names = args.served_model_name or [model]
        if len(names) > 1:
            raise PolicyError("--served-model-name", names, "one name: Ray serves a model by one")
        kwargs = {name: value for name, value in given.items() if value != defaults[name]}
        # A policy's own middleware is among the arguments now; Ray's ingress and replicas do that.
        for name in ("model", "served_model_name", "middleware", *RAYS_OWN):
            kwargs.pop(name, None)
        return cls(model, names[0], kwargs, int(given["shutdown_timeout"]))

    def grace(self) -> dict[str, float]:
        """The same grace period for Ray: it ends what has not ended by itself by then."""
        if not self.shutdown_timeout:
            return {}
        return {"graceful_shutdown_timeout_s": float(self.shutdown_timeout)}


def _refuse_ignored(args: argparse.Namespace, unasked: argparse.Namespace) -> None:
    """Refuse what would be ignored, and what ``vllm serve`` itself refuses before it starts.

    Args:
        args: the file's.
        unasked: the same without the file.

    Raises:
        UnsupportedError: naming the flag.
    """
    for name, reason in REFUSED.items():
        if getattr(args, name, None) != getattr(unasked, name, None):
            flag = name.replace("_", "-")
            raise UnsupportedError(f"--{flag} has no effect behind Ray: {reason}")
    # The template may be a file of the replicas' alone, which see to it.
    checked = argparse.Namespace(**{**vars(args), "chat_template": None})
    try:
        compat.serve_arguments().validate_parsed_serve_args(checked)
    except (TypeError, ValueError) as error:
        raise UnsupportedError(str(error)) from None


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments as vLLM's two dataclasses have them, this project's in ``additional_config``."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    engine = AsyncEngineArgs.from_cli_args(args)
    fields = {
        f.name: getattr(args, f.name)
        for f in dataclasses.fields(compat.serve_arguments().FrontendArgs)
    }
    return fields | {f.name: getattr(engine, f.name) for f in dataclasses.fields(AsyncEngineArgs)}


def _is_cpu() -> bool:
    """Whether the vLLM that is installed is its CPU build; a head node may lack the GPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())
