"""Errors of a server that a command talks to."""

from __future__ import annotations


class ServerError(Exception):
    """A server does not answer, or not as expected; the message says which."""


class BrokenStream(ServerError):
    """A stream began, and then ended with an error or lost its connection."""
