"""The tenant of a request: by its key, a header that a gateway sets, or a field of its body."""

from __future__ import annotations

import hashlib
import json
from http import HTTPStatus

from vllm.exceptions import GracefulHTTPError

from vllm_sink.client_request import ClientRequest
from vllm_sink.config.tenancy import TenancyConfig
from vllm_sink.errors import PolicyError
from vllm_sink.tenancy.keys import MAX_NAME, Tenant, keys_of
from vllm_sink.tenancy.labels import NONE


def tenant_of(config: TenancyConfig, client: ClientRequest) -> Tenant:
    """The tenant of a request.

    Raises:
        PolicyError: the header occurs twice, or the name is not printable.
        GracefulHTTPError: 401, there is no key, or it is unknown.
    """
    if config.keys_file is not None:
        return by_key(config.keys_file, client)
    if config.header is not None:
        name = client.header(config.header) or ""
    else:
        name = client.user or ""
        if not name.isprintable():  # half a surrogate pair cannot cross to the engine core
            raise PolicyError("user", ascii(name), "printable text")
    return Tenant(name[:MAX_NAME] or NONE)


def by_key(path: str, client: ClientRequest) -> Tenant:
    """The tenant that the key of a request belongs to.

    Raises:
        PolicyError: the header occurs twice.
        GracefulHTTPError: 401.
    """
    key = _bearer(client.header("authorization")) or client.header("x-api-key") or ""
    tenant = keys_of(path).find(key) if key else None
    if tenant is None:
        raise GracefulHTTPError(
            "Unauthorized: a key of this server is required (Authorization: Bearer KEY)",
            HTTPStatus.UNAUTHORIZED,
        )
    return tenant


def _bearer(header: str | None) -> str | None:
    scheme, _, key = (header or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def cache_salt(tenant: str, salt: str | None) -> str:
    """A salt of the prefix cache that no other tenant has, whatever salt a client sends."""
    return hashlib.sha256(json.dumps([tenant, salt]).encode()).hexdigest()
