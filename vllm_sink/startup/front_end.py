"""Installs an engine's front end in this process: checks, counts and metrics."""

from __future__ import annotations

from typing import Any

from vllm_sink.compat.install import install
from vllm_sink.config.admission import AdmissionConfig
from vllm_sink.config.tenancy import TenancyConfig


def install_front_end(vllm_config: Any) -> None:
    """Install the hooks in front of an engine; engines without a policy pass through.

    Called where an engine's config is made. If that is not the front end's process (Ray Serve makes
    it in a task that has the GPU), the front end calls it too, before it makes its engine.

    Raises:
        PolicyError: the settings of admission or of tenants are wrong.
    """
    from vllm_sink.metrics.front_end import FRONT_END
    from vllm_sink.tenancy.keys import keys_of

    # Read now, so that wrong settings are errors at start-up.
    tenancy = TenancyConfig.from_config(vllm_config.additional_config)
    if tenancy.keys_file is not None:
        keys_of(tenancy.keys_file)
    admission = AdmissionConfig.from_config(vllm_config.additional_config)
    FRONT_END.most_unsent_bytes = int(admission.max_unsent_mib * 2**20)
    install("front end")
