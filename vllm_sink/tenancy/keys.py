"""The file of ``--sink-tenant-keys``: who has which key, and may have how much.

YAML, or JSON, which is YAML::

    tenants:
      - name: press
        keys: ["sk-press-1", "sha256:9f86d081..."]   # as it is, or its SHA-256 in hexadecimals
        max_streams: 4                                # these four as by the flags, of this tenant
        tokens_per_minute: 60000
      - name: admin
        keys: ["sk-admin"]
        operator: true                                # may call every route of the server

The file is read again when it changes, within a second of the next request, or on SIGHUP. One that
cannot be read leaves everything as it was, and the log says why: a slip of the pen must not lock
everybody out.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import AfterValidator, Field
from vllm.logger import init_logger

from vllm_sink.config.fields import STRICT, Allowed, fields_of, validated
from vllm_sink.config.tenancy import FLAGS, Limits
from vllm_sink.errors import PolicyError

logger = init_logger("vllm.sink")

#: Seconds between two looks at the file.
BETWEEN = 1.0

#: Longer names are cut: a label's value is kept in memory for as long as the server lives.
MAX_NAME = 64

_FLAG = FLAGS["tenant_keys"]
_HASHED = "sha256:"


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("not printable")
    return name


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class _Entry(Limits):
    """A tenant as the file has it."""

    name: Annotated[
        str,
        AfterValidator(_printable),
        Allowed(f"printable text, 1 to {MAX_NAME} characters"),
    ] = Field(min_length=1, max_length=MAX_NAME)
    keys: Annotated[
        list[Annotated[str, Field(min_length=1)]], Allowed("a list of texts", secret=True)
    ] = Field(min_length=1)
    operator: bool = False


@dataclass(frozen=True)
class Tenant:
    """One tenant of the file.

    Attributes:
        name: its name.
        limits: its own, where the file gives it some; of the rest, those of the flags.
        operator: it may call routes that concern others, too.
    """

    name: str
    limits: Limits = field(default_factory=Limits)
    operator: bool = False


def read(path: str) -> dict[bytes, Tenant]:
    """The tenants of a file, by the SHA-256 of each of their keys.

    Raises:
        PolicyError: naming the file, the tenant and what is wrong.
    """
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PolicyError(_FLAG, path, f"a file of YAML that can be read: {error}") from None
    listed = loaded.get("tenants") if isinstance(loaded, Mapping) else None
    if not isinstance(listed, list) or not listed:
        raise PolicyError(_FLAG, path, 'a file with "tenants", a list')
    found: dict[bytes, Tenant] = {}
    names: set[str] = set()
    for entry in listed:
        tenant, digests = _entry(path, entry)
        if tenant.name in names:
            raise PolicyError(f"{_FLAG} {path}", tenant.name, "each name once")
        names.add(tenant.name)
        for digest in digests:
            if digest in found:
                raise PolicyError(f"{_FLAG} {path}", tenant.name, "each key once")
            found[digest] = tenant
    return found


def _entry(path: str, entry: Any) -> tuple[Tenant, list[bytes]]:
    where = f"{_FLAG} {path}"
    if not isinstance(entry, Mapping):
        raise PolicyError(where, type(entry).__name__, 'tenants such as {"name": …, "keys": […]}')

    def called(key: str) -> str:
        if key == "name" or key not in fields_of(_Entry):
            return f"{where}: {key}"
        return f"{where}: {key} of {entry.get('name')}"

    found = validated(_Entry, entry, called)
    limits = Limits(**{name: getattr(found, name) for name in fields_of(Limits)})
    return Tenant(found.name, limits, found.operator), [_digest(where, key) for key in found.keys]


def _digest(where: str, key: str) -> bytes:
    """What is kept of a key. It is in no error: that would be in the log."""
    if not key.startswith(_HASHED):
        return hashlib.sha256(key.encode()).digest()
    try:
        digest = bytes.fromhex(key.removeprefix(_HASHED))
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise PolicyError(where, f"{_HASHED}…", "64 hexadecimal digits after it")
    return digest


class TenantKeys:
    """The file, as it is now.

    Args:
        path: of the file.

    Raises:
        PolicyError: it cannot be used.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen = self._state()
        self._tenants = read(path)
        self._looked = time.monotonic()

    def find(self, key: str) -> Tenant | None:
        """Whose a key is."""
        self._look()
        # Looked up by its hash: how long that takes says nothing of any key.
        return self._tenants.get(hashlib.sha256(key.encode()).digest())

    def look_now(self, *_: object) -> None:
        """Read the file at the next request (a signal's handler)."""
        self._seen, self._looked = None, 0.0

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._looked + BETWEEN:
            return
        self._looked = now
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            self._tenants = read(self.path)
        except PolicyError as error:
            logger.error("Tenants stay as they were: %s", error)
            return
        logger.info("%s: %d tenants", self.path, len(set(self._tenants.values())))


_BY_PATH: dict[str, TenantKeys] = {}


def keys_of(path: str) -> TenantKeys:
    """The file's tenants, of this process; read again on SIGHUP from now on.

    Raises:
        PolicyError: it cannot be used.
    """
    if path not in _BY_PATH:
        _BY_PATH[path] = TenantKeys(path)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGHUP, _look_at_all)
    return _BY_PATH[path]


def _look_at_all(*_: object) -> None:
    for keys in _BY_PATH.values():
        keys.look_now()
