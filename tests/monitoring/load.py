"""Streams that run until stopped, and short requests beside them."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def _request(url: str, tenant: str, body: dict[str, Any]) -> urllib.request.Request:
    return urllib.request.Request(
        url + "/v1/completions",
        json.dumps({"ignore_eos": True, **body}).encode(),
        {"Content-Type": "application/json", "X-Tenant": tenant},
    )


def short(url: str, tenant: str, body: dict[str, Any]) -> None:
    """One request to its end."""
    with urllib.request.urlopen(_request(url, tenant, body), timeout=60) as answer:
        answer.read()


def status(url: str, tenant: str, body: dict[str, Any]) -> int:
    """The response to a request, unread."""
    try:
        with urllib.request.urlopen(_request(url, tenant, body), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@contextmanager
def streams(url: str, wanted: list[tuple[str, dict[str, Any]]]) -> Iterator[list[int]]:
    """Streams of (tenant, body), from here to the end of the block.

    Yields:
        Events received so far by each.
    """
    stop = threading.Event()
    events = [0] * len(wanted)

    def follow(i: int, tenant: str, body: dict[str, Any]) -> None:
        request = _request(url, tenant, {**body, "stream": True})
        with urllib.request.urlopen(request, timeout=600) as answer:
            for line in answer:
                if stop.is_set():
                    return  # closes the connection: the server aborts the request
                events[i] += line.startswith(b"data: {")

    threads = [
        threading.Thread(target=follow, args=(i, *one), daemon=True) for i, one in enumerate(wanted)
    ]
    for thread in threads:
        thread.start()
    try:
        yield events
    finally:
        stop.set()
        for thread in threads:
            thread.join(5)
