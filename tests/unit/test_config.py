"""Configs: read once, read again when changed, and one set of bounds for a flag and its field."""

from __future__ import annotations

import argparse
import json
import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_sink.config.admission import AdmissionConfig
from vllm_sink.config.fields import fields_of, flags_of, validated
from vllm_sink.config.kv_policy import KVPolicy, policy_of
from vllm_sink.config.tenancy import TenancyConfig
from vllm_sink.errors import PolicyError
from vllm_sink.startup.arguments import add_flags

CONFIGS = (KVPolicy, AdmissionConfig, TenancyConfig)

# -- read once -------------------------------------------------------------------------------------


def test_a_config_is_parsed_once_and_again_when_it_changes() -> None:
    """In place as well: the section, its mapping, and the config that holds both."""
    given: dict[str, Any] = {
        "kv_policy": {"name": "sink", "window_tokens": 60},
        "sink_admission": {"max_streams": 3},
        "sink_tenancy": {"tenant_label": "user", "max_streams": 3},
    }
    engine = SimpleNamespace(additional_config=given)
    first = policy_of(engine), AdmissionConfig.from_config(given), TenancyConfig.from_config(given)
    again = policy_of(engine), AdmissionConfig.from_config(given), TenancyConfig.from_config(given)
    assert all(one is other for one, other in zip(first, again, strict=True))

    given["kv_policy"]["window_tokens"] = 61
    given["sink_admission"]["max_streams"] = 4
    given["sink_tenancy"]["max_streams"] = 4
    changed = policy_of(engine)
    assert changed is not None
    assert changed.window == 61
    assert AdmissionConfig.from_config(given).max_streams == 4
    assert TenancyConfig.from_config(given).limits.max_streams == 4

    given["kv_policy"] = {"name": "full"}
    assert policy_of(engine) is None
    del given["sink_admission"], given["sink_tenancy"]
    assert AdmissionConfig.from_config(given) == AdmissionConfig()
    assert not TenancyConfig.from_config(given).on


def test_a_wrong_config_is_refused_each_time() -> None:
    given = {"sink_admission": {"max_streams": 3}}
    AdmissionConfig.from_config(given)
    given["sink_admission"]["max_streams"] = 0
    for _ in range(2):
        with pytest.raises(PolicyError, match="--sink-max-streams: 0 is not allowed"):
            AdmissionConfig.from_config(given)


def test_what_reaches_the_workers_is_plain() -> None:
    plain = KVPolicy.from_config({"name": "sink", "sink_tokens": "system"}).to_config()
    assert json.loads(json.dumps(plain)) == pickle.loads(pickle.dumps(plain)) == plain


# -- what a field takes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_streams": True}, "--sink-max-streams: True is not allowed; allowed: an integer of"),
        ({"default_max_tokens": 1.0}, "--sink-default-max-tokens: 1.0 is not allowed"),
        ({"stream_share": 0}, "--sink-stream-share: 0 is not allowed; allowed: a number above 0,"),
        ({"stream_share": float("nan")}, "--sink-stream-share: nan is not allowed"),
        ({"stream_share": True}, "--sink-stream-share: True is not allowed"),
        ({"stream_share": 1.01}, "allowed: a number above 0, and at most 1"),
        ({"queue_timeout": "5"}, "allowed: seconds: a number above 0, and at most 1e9"),
        ({"queue_timeout": 10**400}, "allowed: seconds: a number above 0, and at most 1e9"),
        ({"max_unsent_mib": -1}, "allowed: MiB: a number above 0, and at most 1e6"),
        ({"stream": 1}, "sink_admission.stream: 1 is not allowed; allowed: one of default_max_tok"),
        ([3], "sink_admission: [3] is not allowed; allowed: a mapping such as"),
    ],
)
def test_bad_admission_settings(given: object, said: str) -> None:
    with pytest.raises(PolicyError) as refused:
        AdmissionConfig.from_config({"sink_admission": given})
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"isolate_tenants": 1}, "--sink-isolate-tenants: 1 is not allowed; allowed: true or fals"),
        ({"require_api_key": "yes"}, "--sink-require-api-key: 'yes' is not allowed"),
        ({"tenant_names": "full"}, "'full' is not allowed; allowed: one of hashed, plain"),
        ({"tenant_label": "users"}, "allowed: off, user, key, or header:NAME"),
        ({"tenant_label": "header:a\n"}, "allowed: off, user, key, or header:NAME"),
        ({"tenant_keys": ""}, "--sink-tenant-keys: '' is not allowed; allowed: the path of a file"),
    ],
)
def test_bad_tenancy_settings(given: dict[str, object], said: str) -> None:
    with pytest.raises(PolicyError) as refused:
        TenancyConfig.from_config({"sink_tenancy": {"tenant_label": "user", **given}})
    assert said in str(refused.value)


def test_null_is_the_default() -> None:
    for key, config in (("sink_admission", AdmissionConfig), ("sink_tenancy", TenancyConfig)):
        nothing = dict.fromkeys(flags_of(config))
        assert config.from_config({key: nothing}) == config()
        with pytest.raises(PolicyError, match=f"{key}.other: None is not allowed"):
            config.from_config({key: {"other": None}})


# -- flags -----------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False)
    for config in CONFIGS:
        add_flags(parser.add_argument_group(), config)
    return parser


#: Of each flag that takes a value: one that it takes, as text and as a value, and one that it
#: does not take.
VALUES: dict[str, tuple[str, object, str]] = {
    "--kv-policy": ("sink", "sink", "sinks"),
    "--sink-tokens": ("system", "system", "sistem"),
    "--sink-attention": ("triton", "triton", "fast"),
    "--sink-tenant-label": ("header:X", "header:X", "header:"),
    "--sink-tenant-names": ("plain", "plain", "full"),
    "--sink-tenant-keys": ("FILE", "FILE", ""),
    "--sink-stream-share": ("1", 1.0, "1.1"),
    "--sink-queue-timeout": ("0.5", 0.5, "nan"),
    "--sink-max-unsent-mib": ("1e6", 1e6, "1e7"),
}
SWITCHES = {"--sink-isolate-tenants", "--sink-require-api-key"}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_flag_takes_what_its_field_takes(config: type) -> None:
    for key, flag in flags_of(config).items():
        name = flag.removeprefix("--").replace("-", "_")
        if flag in SWITCHES:
            assert vars(_parser().parse_args([flag])) == {name: True}
            continue
        text, value, wrong = VALUES.get(flag, ("2", 2, "-1"))
        assert vars(_parser().parse_args([f"{flag}={text}"])) == {name: value}
        with pytest.raises(argparse.ArgumentError) as refused:
            _parser().parse_args([f"{flag}={wrong}"])
        with pytest.raises(PolicyError) as also:
            validated(config, {"name": "sink", key: wrong}, called=str)
        assert str(refused.value) == (
            f"argument {flag}: {wrong!r} is not allowed; allowed: {also.value.allowed}"
        )


@pytest.mark.parametrize("text", ["4.0", "four", "", "9" * 5000, "-1"])
def test_text_that_is_no_count(text: str) -> None:
    with pytest.raises(argparse.ArgumentError, match="allowed: an integer of at least 0, or syst"):
        _parser().parse_args([f"--sink-tokens={text}"])


def test_the_help_has_the_default_and_the_values() -> None:
    told = "".join(_parser().format_help().split())  # lines break at any hyphen
    assert "--sink-queue-timeoutSECONDSHowlong" in told
    assert "HTTP503.(default:300)" in told
    assert "--sink-tenant-names{hashed,plain}" in told
    assert "(default:None)" not in told
    for config in CONFIGS:
        for key, info in fields_of(config).items():
            assert key not in flags_of(config) or "".join(str(info.description).split()) in told


@pytest.mark.parametrize(
    ("typed", "flag"),
    [
        (["--window", "5"], "--window-tokens"),
        (["--window=5"], "--window-tokens"),
        (["--kv-pol", "sink"], "--kv-policy"),
        (["--sink-iso"], "--sink-isolate-tenants"),
    ],
)
def test_an_abbreviation_is_refused_by_the_flags_name(typed: list[str], flag: str) -> None:
    with pytest.raises(argparse.ArgumentError) as refused:
        _parser().parse_args(typed)
    said = f"argument {flag}: an abbreviation is not allowed; allowed: {flag}"
    assert str(refused.value) == said


def test_an_abbreviation_of_several_flags_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((argparse.ArgumentError, SystemExit)) as refused:
        _parser().parse_args(["--sink-token", "5"])
    said = capsys.readouterr().err + str(refused.value)  # the latter from Python 3.12 on
    assert "could match --sink-tokens, --sink-tokens-per-minute" in said


def test_vllms_own_abbreviations_stay() -> None:
    parser = _parser()
    parser.add_argument("--port", type=int)
    assert parser.parse_args(["--po", "5", "--sink-tokens", "4"]).port == 5
