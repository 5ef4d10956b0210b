"""Reads what all ranks wrote with Metrics, and says what it means: figures, advice, a page."""

from __future__ import annotations
