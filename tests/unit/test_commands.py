"""What ``vllm-sink stream`` and ``top`` do without a server."""

from __future__ import annotations

import io
import os
import sys

import pytest

from tests.e2e.terminals import running
from vllm_sink import cli
from vllm_sink.commands.key import Key
from vllm_sink.commands.live_text import live_text
from vllm_sink.commands.server import Server
from vllm_sink.errors import PolicyError


def test_the_key_is_the_flags_then_vllms_then_openais(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert Key.find(None) is None
    monkeypatch.setenv("OPENAI_API_KEY", "third")
    assert Key.find(None) == Key("third", "OPENAI_API_KEY")
    monkeypatch.setenv("VLLM_API_KEY", "second\n")
    assert Key.find("") == Key("second", "VLLM_API_KEY")
    assert Key.find("first") == Key("first", "--api-key")


@pytest.mark.parametrize("value", ["secret\nsecret", "secret\x01", "schlüssel"])
def test_a_key_is_never_shown(value: str) -> None:
    with pytest.raises(PolicyError) as refused:
        Key.find(value)
    assert "--api-key" in str(refused.value)
    assert value[:5] not in str(refused.value)
    assert "secret" not in repr(Key("secret", "--api-key"))


def test_a_slow_server_is_waited_for() -> None:
    server = Server("http://localhost:8000/v1/")
    for timeout in (server.client.timeout, server.http.timeout):
        assert timeout.read is None
        assert timeout.connect is not None
    assert server.client.max_retries == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("plan m --kv-gib nan", "--kv-gib: 'nan' is not allowed; allowed: a positive number of G"),
        ("plan m --gpu-gib inf", "--gpu-gib: 'inf' is not allowed; allowed: a positive number"),
        ("plan m --kv-gib 0", "--kv-gib: '0' is not allowed; allowed: a positive number of GiB"),
        (
            "plan m --gpu-memory-utilization 1.5",
            "--gpu-memory-utilization: '1.5' is not allowed; allowed: a positive number, 1e-09 to",
        ),
        (
            "plan m --window-tokens 60 --window-tokens x",
            "--window-tokens: 'x' is not allowed; allowed: an integer",
        ),
        ("plan m --kv-gib 1 --gpu-gib 2", "--gpu-gib: 2.0 is not allowed; allowed: one of --kv-g"),
        ("plan", "'MODEL'"),
        ("plan m --no-such-flag", "--no-such-flag"),
        ("stream u --max-tokens -1", "--max-tokens: '-1' is not allowed; allowed: an integer of"),
        ("stream u --temperature x", "--temperature: 'x' is not allowed; allowed: a number"),
        ("doctor m --kv-gib x", "--kv-gib: 'x' is not allowed; allowed: a positive number of GiB"),
        ("doctor --hooks --port 1", "--hooks: '--port 1' is not allowed; allowed: no flag of vllm"),
        ("bogus", "'bogus'"),
        ("", "{doctor,plan,stream,top}"),
    ],
)
def test_an_error_names_the_flag_the_value_and_what_is_allowed(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_text_without_a_terminal_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    with live_text(out, lambda: "the status") as write:
        write("some ")
        write("[b]text\n")
    assert out.getvalue() == "some [b]text\n"


#: Writes a text when a line is entered, and ends with the next.
PROGRAM = """
import sys
from vllm_sink.commands.live_text import live_text
with live_text(sys.stdout, lambda: "the status") as write:
    input()
    write("a long\\b line")
    input()
"""


def test_the_status_line_follows_the_terminals_size() -> None:
    with running([sys.executable, "-c", PROGRAM], dict(os.environ)) as (terminal, process):
        terminal.read_until("\x1b[7mthe status\x1b[0m", 60)
        terminal.resize(10, 6)
        terminal.read_until("\x1b[7mthe st\x1b[0m", 10)  # without any new text
        terminal.press(b"\n")
        terminal.read_until("\x1b[2Ka long\r\n", 10)  # a row that is full
        terminal.resize(20, 60)
        terminal.read_until("\x1b[7mthe status\x1b[0m", 10)
        terminal.press(b"\n")
        assert process.wait(60) == 0
        # The cursor is visible again; the status is removed and the text stays.
        after = terminal.read_until("\x1b[?25h", 10).rpartition("\x1b[?25h")[2]
        after += terminal.read_until("line", 10) if "line" not in after else ""
    assert "the status" not in after
    assert "\b" not in terminal.shown
