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

#: Flags of vLLM's server that have no meaning behind Ray's: Ray listens, and ends processes.
_RAYS_OWN = ("host", "port", "uds", "api_server_count", "shutdown_timeout", "middleware")


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
        if args.api_key:
            raise PolicyError(
                "--api-key", "a key in a file", "a key in VLLM_API_KEY, from a secret"
            )
        try:
            given = _fields(args)
        except SystemExit as error:
            refuse(str(error))
        unasked = _fields(parser.parse_args(["--model", args.model_tag or args.model]))
        model = args.model_tag or args.model
        names = args.served_model_name or [model]
        kwargs = {name: value for name, value in given.items() if value != unasked[name]}
        for name in ("model", "served_model_name", *_RAYS_OWN):
            kwargs.pop(name, None)
        return cls(model, names[0], kwargs, int(given["shutdown_timeout"]))

    def grace(self) -> dict[str, float]:
        """The same grace period for Ray: it ends what has not ended by itself by then."""
        if not self.shutdown_timeout:
            return {}
        return {"graceful_shutdown_timeout_s": float(self.shutdown_timeout)}


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
