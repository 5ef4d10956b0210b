"""A timeline of every rank: what it did when, written as it goes, and put together to one trace afterwards."""

from __future__ import annotations

from .writing import Timeline

__all__ = ["Timeline"]
