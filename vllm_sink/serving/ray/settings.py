"""The arguments of :func:`vllm_sink.serving.ray.app`, and ``vllm serve``'s flags for Ray."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from vllm_sink import compat, plugin
from vllm_sink.config.fields import validated
from vllm_sink.errors import PolicyError, UnsupportedError
from vllm_sink.serving.ray.server_flags import RAYS_OWN, REFUSED

#: Where the file of flags lies, unless ``config`` says so.
CONFIG_VARIABLE = "VLLM_SINK_CONFIG"


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("true is no number")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AppArgs:
    """What ``serve run vllm_sink.serving.ray:app NAME=VALUE …`` takes, there as text."""

    config: str = Field(
        default_factory=lambda: os.environ.get(CONFIG_VARIABLE, ""),
        description="A YAML file of vllm serve flags, the one that vllm serve --config takes.",
    )
    min_replicas: Int = Field(default=1, ge=0, description="At least so many.")
    # One number means so many replicas, no less and no more.
    max_replicas: Int = Field(
        default_factory=lambda given: max(1, given["min_replicas"]),
        description="At most so many; between the two the load decides.",
    )
    target_load: Float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="The part of a replica's room (streams that fit, blocks) to fill.",
    )
    cpus: Float = Field(
        default=1.0, ge=0, description="Of Ray's, for each replica besides its engine's."
    )
    wait_for_resources_s: Float = Field(
        default=30.0,
        ge=0,
        description="How long the cluster may take to have what the replicas need.",
    )

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> AppArgs:
        """Check what was given.

        Raises:
            PolicyError: an argument is unknown, of the wrong type or out of range.
        """
        return validated(cls, args, called=str)

    @model_validator(mode="after")
    def _check(self) -> AppArgs:
        if not Path(self.config).is_file():
            raise PolicyError(
                "config",
                self.config,
                f"a YAML file of vllm serve's flags, here or in {CONFIG_VARIABLE}",
            )
        least = max(1, self.min_replicas)
        if self.max_replicas < least:
            raise PolicyError("max_replicas", self.max_replicas, f"{least} or more")
        return self

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
