"""A campaign: cases from all sources, some at a time, against a server with bystanders.

A request that gets a 5xx is repeated on a server without the plugin: if vLLM itself answers 5xx it
is listed, otherwise it is a fault.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import httpx
from tqdm import tqdm

from tests.fuzz.bystander import Bystander, Probe
from tests.fuzz.cases import Case, edges, from_schema, mixtures

#: Seconds after which a client disconnects: some answers are endless by request.
PATIENCE = 4.0


@dataclass
class Report:
    """What a campaign saw."""

    seconds: float = 0.0
    sent: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    routes: dict[str, Counter[str]] = field(default_factory=dict)
    fields: set[str] = field(default_factory=set)
    #: 5xx answers that vLLM without the plugin gives as well, by route and message.
    vllms_own: Counter[str] = field(default_factory=Counter)
    #: Other 5xx answers, and broken connections.
    faults: list[dict[str, Any]] = field(default_factory=list)
    bystander_answers: int = 0
    bystander_tokens: int = 0
    bystander_wrong: list[str] = field(default_factory=list)
    health_probes: int = 0
    health_slowest_s: float = 0.0
    health_failures: list[str] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        """Plain data, for a file."""
        return {
            **vars(self),
            "fields": sorted(self.fields),
            "fields_reached": len(self.fields),
            "routes_reached": len(self.routes),
        }


class Campaign:
    """Sends cases from several threads until the time is up.

    Args:
        url: of the server under test.
        stock: of a server of the same model without the plugin; None to count every 5xx as a fault.
        model: as both call it.
        vocabulary: its size.
        seed: of all that is random.
    """

    def __init__(self, url: str, stock: str | None, model: str, vocabulary: int, seed: int) -> None:
        self.url, self.stock = url, stock
        self.schema: dict[str, Any] = httpx.get(url + "/openapi.json", timeout=60).json()
        rng = random.Random(seed)
        walked = list(edges(self.schema, model, vocabulary))
        rng.shuffle(walked)
        self._sources: list[Iterator[Case]] = [
            iter(walked),
            mixtures(self.schema, model, vocabulary, rng),
            from_schema(self.schema, seed),
        ]
        self._rng = rng
        self._lock = threading.Lock()
        self.report = Report()

    def _next(self) -> Case:
        """From the sources in random order; the first one ends, the others do not."""
        with self._lock:
            while True:
                source = self._rng.choice(self._sources)
                for case in islice(source, 1):
                    return case
                self._sources.remove(source)

    def run(self, seconds: float, clients: int, bystander: Bystander) -> Report:
        """Fuzz until the time is up."""
        probe = Probe(self.url)
        probe.start()
        bystander.start()
        began = time.monotonic()
        bar = tqdm(total=round(seconds), unit="s", desc="fuzzing", disable=None)
        threads = [
            threading.Thread(target=self._work, args=(began + seconds,), daemon=True)
            for _ in range(clients)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(1)
            bar.update(max(0, min(round(seconds), int(time.monotonic() - began)) - bar.n))
            bar.set_postfix(sent=self.report.sent, faults=len(self.report.faults))
        bar.close()
        bystander.stop()
        probe.stop()
        report = self.report
        report.seconds = time.monotonic() - began
        report.bystander_answers, report.bystander_tokens = bystander.answers, bystander.tokens
        report.bystander_wrong = bystander.wrong
        report.health_probes, report.health_slowest_s = probe.asked, probe.slowest
        report.health_failures = probe.sick
        return report

    def _work(self, until: float) -> None:
        with httpx.Client(timeout=httpx.Timeout(60.0)) as client:
            while time.monotonic() < until:
                case = self._next()
                status, told = send(client, self.url, case)
                if status == "broken":
                    # A connection that was idle may be closed as it is used again (RFC 9112, 9.3).
                    with httpx.Client(timeout=60.0) as fresh:
                        status, told = send(fresh, self.url, case)
                self._count(case, status)
                if status == "broken" or status.startswith("5"):
                    self._judge(client, case, status, told)

    def _count(self, case: Case, status: str) -> None:
        with self._lock:
            self.report.sent += 1
            self.report.sources[case.source] += 1
            self.report.routes.setdefault(case.path, Counter())[status] += 1
            self.report.fields.update(f"{case.path} {name}" for name in case.fields)

    def _judge(self, client: httpx.Client, case: Case, status: str, told: str) -> None:
        """Whether vLLM itself gives this answer."""
        if self.stock is not None and status != "broken":
            theirs, _ = send(client, self.stock, case)
            if theirs.startswith("5"):
                with self._lock:
                    self.report.vllms_own[
                        f"{case.path} {', '.join(case.fields)}: {told[:160]}"
                    ] += 1
                return
        fault = {"route": case.path, "status": status, "told": told[:2000], "body": _text(case)}
        with self._lock:
            self.report.faults.append(fault)


def send(client: httpx.Client, url: str, case: Case) -> tuple[str, str]:
    """The status of an answer and its beginning; ``left`` if the client gave up."""
    end = time.monotonic() + PATIENCE
    headers = {"content-type": "application/json", **case.headers}
    content = None if case.body is None else _text(case).encode()
    status, told = "broken", ""
    try:
        with client.stream("POST", url + case.url, content=content, headers=headers) as answer:
            status = str(answer.status_code)
            for chunk in answer.iter_text():
                told += chunk[: max(0, 4000 - len(told))]
                if time.monotonic() > end:
                    return f"{status}, left", told
    except httpx.TimeoutException:
        return "left", told
    except httpx.HTTPError as error:
        return "broken", repr(error)
    if status == "200" and '"code":5' in told.replace(" ", ""):
        return "500 in events", told
    return status, told


def _text(case: Case) -> str:
    """JSON as Python writes it: NaN and infinities too, lone surrogates escaped."""
    return json.dumps(case.body)
