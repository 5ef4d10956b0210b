"""The logger ``pushsum_opt``. It prints to standard error only while the program has configured no logging.

Without that, a program that sets up no logging would see neither the start line nor a stall.
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
