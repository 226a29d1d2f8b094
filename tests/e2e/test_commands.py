"""``vllm-sink stream`` and ``top`` as a user runs them, against a real server."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.e2e.command_line import environment_of_commands, run_command
from tests.e2e.engines import tiny
from tests.e2e.servers import Server, serve, until
from tests.e2e.terminals import running
from vllm_sink import cli
from vllm_sink.commands import server as commands
from vllm_sink.commands.errors import ServerError
from vllm_sink.commands.key import Key

pytestmark = pytest.mark.xdist_group("server")

SINKS, WINDOW = 4, 60
FLAGS = (
    f"--kv-policy sink --sink-tokens {SINKS} --window-tokens {WINDOW} --served-model-name tiny "
    "--dtype float32 --enforce-eager --max-num-seqs 16 --max-model-len 2048 "
    "--sink-tenant-label user --sink-tenant-names plain"
)

#: Of servers with a key; with one request at a time, the next one waits.
KEY = "a-key-of-this-test"
ONE_AT_A_TIME = (
    f"--kv-policy sink --sink-tokens {SINKS} --window-tokens {WINDOW} --dtype float32 "
    f"--enforce-eager --max-num-seqs 1 --api-key {KEY} --sse-keep-alive-interval 1"
)


@pytest.fixture(scope="module")
def server(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("commands") / "log"
    with serve(tiny("llama-gqa", tiny_folder), log, *FLAGS.split()) as running:
        yield running


def test_stream(server: Server) -> None:
    """Text on stdout; at the end the status, as computed by hand."""
    ended = run_command("stream", server.url, "--prompt", "Call me Ishmael.", "--max-tokens", "300")
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout) > 100
    status = ended.stderr.splitlines()[-1]
    found = re.match(
        r"(\d+) tokens \| ([\d.]+) x the native context of 128 \| ([\d.]+) tokens/s \| "
        r"(\d+) KV blocks; ended: length",
        status,
    )
    assert found, status
    tokens = int(found[1])
    assert tokens > 300
    assert float(found[2]) == pytest.approx(tokens / 128, abs=0.01)
    assert float(found[3]) > 0
    # Blocks of 32: one pinned, and those that hold any of the last 60 tokens.
    assert int(found[4]) == 1 + (tokens - 1) // 32 - (tokens - WINDOW) // 32 + 1


def test_stream_as_far_as_the_server_lets_it(server: Server) -> None:
    ended = run_command("stream", server.url, "--prompt", "On and on")
    assert ended.returncode == 0, ended.stderr
    assert "2,048 tokens | 16.00 x the native context" in ended.stderr.splitlines()[-1]


def _command(server: Server, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "vllm_sink.cli", arguments[0], server.url, *arguments[1:]]


def test_stream_in_a_terminal(guarded: Server) -> None:
    """The status stays below the text, at any size, and the terminal is given back.

    Of a server where no length ends a stream before the terminal has been looked at.
    """
    command = _command(guarded, "stream")
    with running(command, environment_of_commands(KEY)) as (terminal, process):
        terminal.read_until("x the native context of 128 |", 120)
        terminal.resize(10, 20)
        terminal.read_until(re.compile(r"\x1b\[7m[^\x1b]{20}\x1b\[0m"), 60)
        terminal.press(b"\x03")
        end = terminal.read_until("; ended: interrupted", 60)
        assert "\x1b[?25h" in end
        assert process.wait(60) == 0


def test_top_in_a_terminal(server: Server) -> None:
    """The view fills a screen of its own; its last state stays."""
    command = _command(server, "top", "--interval", "0.5")
    with running(command, environment_of_commands()) as (terminal, process):
        terminal.read_until("Ctrl-C ends", 120)
        assert "\x1b[?1049h" in terminal.shown
        terminal.resize(10, 20)
        terminal.read_until(f"{server.url[:19]}…", 60)
        terminal.press(b"\x03")
        terminal.read_until(re.compile(r"\x1b\[\?1049l.*so far", re.DOTALL), 60)
        assert process.wait(60) == 0


def test_top(server: Server) -> None:
    server.post("/v1/completions", {"model": "tiny", "prompt": [9] * 200, "user": "me"})
    ended = run_command("top", server.url, "--once", "--interval", "0.5")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert "tiny engine 0  sink S=4 W=60 of 128  attention: torch" in lines[0]
    assert re.match(r"streams +0 live, 0 past the context, \d+ fit; 0 waiting", lines[1])
    blocks = [int(line.split()[-1].replace(",", "")) for line in lines[2:5]]
    assert blocks[0] == blocks[1] == 0
    assert blocks[2] > 0
    assert any(line.startswith("  me ") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stream", "{url}", "--model", "other"), "--model: 'other' is not allowed; allowed: one"),
        (("stream", "{url}", "--sink-tokens", "100"), "sink_tokens: 100 is not allowed"),
        (("stream", "localhost:1"), "URL: 'localhost:1' is not allowed"),
        (("stream", "http://127.0.0.1:1"), "no server answers at http://127.0.0.1:1"),
        (("stream", "{url}", "--max-tokens", "0"), "'0' is not allowed; allowed: an integer"),
        (("top", "http://127.0.0.1:1"), "no server answers at http://127.0.0.1:1"),
        (("top", "{url}/nowhere"), "HTTP 404"),
        (("top", "{url}", "--interval", "0"), "'0' is not allowed; allowed: a positive number"),
    ],
)
def test_errors_are_one_line(server: Server, arguments: tuple[str, ...], message: str) -> None:
    ended = run_command(*(a.format(url=server.url) for a in arguments))
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_server_without_the_policy(tiny_folder: Path, tmp_path: Path) -> None:
    flags = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16"]
    with serve(tiny("llama-gqa", tiny_folder), tmp_path / "log", *flags) as plain:
        for command in ("top", "stream"):
            ended = run_command(command, plain.url)
            assert ended.returncode == 2
            assert "has no vllm_sink_* metrics" in ended.stderr


@pytest.fixture(scope="module")
def guarded(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("guarded") / "log"
    flags = [*ONE_AT_A_TIME.split(), "--shutdown-timeout", "30"]
    with serve(tiny("llama-gqa", tiny_folder), log, *flags) as running:
        yield running


@contextmanager
def _following(server: Server, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``vllm-sink stream`` of its own; its text is in ``folder/text``."""
    with (folder / "text").open("w") as text:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm_sink.cli", "stream", server.url, *arguments],
            env=environment_of_commands(KEY),
            stdout=text,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextmanager
def _endless(server: Server, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """One that runs."""
    with _following(server, folder) as process:
        text = folder / "text"
        until(lambda: text.stat().st_size or process.poll() is not None, 120)
        assert text.stat().st_size, f"it ended with {process.returncode}"
        yield process


def _process(server: Server) -> psutil.Process:
    port = server.url.rpartition(":")[2]
    # One that has ended and was not waited for has no command line.
    lines = {p: p.as_dict(["cmdline"])["cmdline"] or () for p in psutil.Process().children()}
    return next(p for p, line in lines.items() if port in line)


@pytest.mark.parametrize("command", ["stream", "top"])
def test_a_key(guarded: Server, command: str) -> None:
    arguments = ("--max-tokens", "5") if command == "stream" else ("--once", "--interval", "0.1")
    for ended in (
        run_command(command, guarded.url, *arguments, "--api-key", KEY),
        run_command(command, guarded.url, *arguments, key=f"{KEY}\n"),
        run_command(command, guarded.url, *arguments, "--api-key", KEY, key="another"),
    ):
        assert ended.returncode == 0, ended.stderr
        assert KEY not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        ((), "", "HTTP 401: it asks for an API key; set the server's key in VLLM_API_KEY"),
        ((), "a-wrong-one", "HTTP 401: it refuses the key of VLLM_API_KEY; set the server's key"),
        (("--api-key", "a-wrong-one"), KEY, "HTTP 401: it refuses the key of --api-key; set"),
    ],
)
def test_no_key_or_a_wrong_one(
    guarded: Server, arguments: tuple[str, ...], key: str, message: str
) -> None:
    ended = run_command("stream", guarded.url, *arguments, key=key)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "a-wrong-one" not in ended.stdout + ended.stderr


def test_a_stream_that_waits_hears_comments(guarded: Server, tmp_path: Path) -> None:
    """``: keep-alive`` is no event. The last of three is sent one after the second was."""
    metrics = commands.Server(guarded.url).metrics
    (tmp_path / "second").mkdir()
    with (
        _endless(guarded, tmp_path) as first,
        _following(guarded, tmp_path / "second", "--max-tokens", "20") as second,
    ):
        until(lambda: metrics().sum("vllm_num_requests_waiting") == 1, 120)
        body = {"model": _model(guarded), "prompt": "It", "stream": True}
        request = urllib.request.Request(
            f"{guarded.url}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
        )
        with urllib.request.urlopen(request, timeout=120) as third:
            assert third.readline() == b": keep-alive\n"
        first.send_signal(signal.SIGINT)
        assert "ended: interrupted" in first.communicate(timeout=120)[1]
        assert "ended: length" in second.communicate(timeout=120)[1]
        assert (first.returncode, second.returncode) == (0, 0)


def _model(server: Server) -> str:
    return str(commands.Server(server.url, Key(KEY, "test")).model(None)["id"])


def test_a_server_that_shuts_down(
    guarded: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A new stream is refused with the reason; a running one ends with an event that has it.

    The last test of this server.
    """
    with _endless(guarded, tmp_path) as following:
        _process(guarded).send_signal(signal.SIGTERM)
        until(lambda: "shutting down" in _health(guarded), 60)
        # In this process: there are but seconds.
        assert cli.main(["stream", guarded.url, "--api-key", KEY]) == 2
        message = capsys.readouterr().err
        assert "/v1/completions: HTTP 503: this server is shutting down: send the" in message
        assert message.endswith("(Retry-After: 1 s)\n")
        errors = following.communicate(timeout=120)[1]
        assert following.returncode == 1, errors
        assert "; ended: error\n" in errors
        assert f"error: {guarded.url} ended the stream: this server is shutting down" in errors
        assert "Traceback" not in errors


def _health(server: Server) -> str:
    try:
        return commands.Server(server.url).get("/health")
    except ServerError as error:
        return str(error)


def test_a_server_that_dies(tiny_folder: Path, tmp_path: Path) -> None:
    flags = ONE_AT_A_TIME.split()
    with (
        serve(tiny("llama-gqa", tiny_folder), tmp_path / "log", *flags) as dying,
        _endless(dying, tmp_path) as following,
    ):
        server = _process(dying)
        engines = server.children(recursive=True)
        server.kill()
        errors = following.communicate(timeout=120)[1]
        for engine in psutil.wait_procs(engines, timeout=60)[1]:
            engine.kill()
    assert following.returncode == 1, errors
    assert f"error: {dying.url} went away: " in errors
    assert "Traceback" not in errors
