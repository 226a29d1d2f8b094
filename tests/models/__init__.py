"""Tiny randomly initialised checkpoints of every architecture the policy claims."""

from tests.models.factory import make_tiny
from tests.models.recipes import ARCHITECTURES, Recipe

__all__ = ["ARCHITECTURES", "Recipe", "make_tiny"]
