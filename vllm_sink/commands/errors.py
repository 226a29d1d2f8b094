"""What goes wrong with a server that a command speaks to."""

from __future__ import annotations


class ServerError(Exception):
    """A server that does not answer, or not what was asked for; the text says which."""


class BrokenStream(ServerError):
    """A stream that began, and ended with an error or with the connection."""
