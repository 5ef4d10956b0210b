"""The logger ``pushsum_opt``: silent about formats, but never mute.

A library leaves logging to the program. But a program that sets up none would not see the start line or a stall; so,
as long as nobody has configured a handler, records go to standard error in a short form.
"""

from __future__ import annotations

import logging
import sys

__all__ = ["log"]

log = logging.getLogger("pushsum_opt")


class _UnlessConfigured(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers and len(log.handlers) == 1:
            print(f"pushsum_opt: {self.format(record)}", file=sys.stderr, flush=True)


log.addHandler(_UnlessConfigured())
if log.level == logging.NOTSET:
    log.setLevel(logging.INFO)
