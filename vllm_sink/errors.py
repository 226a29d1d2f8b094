"""One shape for every refusal: the flag or field, the value, what is allowed."""

from __future__ import annotations


class PolicyError(ValueError):
    """A flag or field that cannot be honoured.

    Attributes:
        field: the flag or request field, as the user writes it.
        value: its value.
        allowed: the values that are allowed.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field}: {value!r} is not allowed; allowed: {allowed}")

    def __reduce__(self) -> tuple[type[PolicyError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.allowed)


class UnsupportedError(ValueError):
    """A model or setting under which the policy would be wrong, refused with the reason."""
