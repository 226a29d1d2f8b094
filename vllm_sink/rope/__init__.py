"""Rotary positions whose angles are exact at any index."""
