"""What ``vllm-sink stream`` and ``top`` do before and beside a server."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios

import pytest

from vllm_sink.commands.server import Key, Server
from vllm_sink.commands.stream import _status_line
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
    client = Server("http://localhost:8000/v1/").client
    assert client.timeout.read is None
    assert client.timeout.connect is not None
    assert client.max_retries == 0


def test_the_status_line_follows_the_terminals_size() -> None:
    ours, theirs = pty.openpty()

    def resize(rows: int, columns: int) -> None:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def written() -> str:
        return os.read(ours, 65536).decode()

    resize(20, 60)
    with os.fdopen(theirs, "w") as out:
        with _status_line(out) as show:
            show("the status")
            first = written()
            assert "\x1b[1;19r" in first  # the rows that scroll
            assert f"\x1b[20;1H\x1b[7m{'the status':<60}\x1b[0m" in first
            show("the same")
            assert "r\x1b8" not in written()
            resize(10, 6)
            show("the status")
            second = written()
            assert "\x1b[1;9r" in second
            assert "\x1b[10;1H\x1b[7mthe st\x1b[0m" in second
        assert written().startswith("\x1b[r\x1b[10;1H")
    os.close(ours)
