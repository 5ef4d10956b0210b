"""``pushsum top``: what all ranks do now, as a table that goes on."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..observe.report.reading import Folder, Run

__all__ = ["HELP", "NAME", "add_arguments", "main", "watch"]

NAME = "top"
HELP = "Show what all ranks do now, as a table: who is slow, who waits for whom (from Metrics' files)."

SILENT_S = 600.0
"""A run of which nothing was heard for so long is over, whether or not its ranks said so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="the folder that Metrics(optimizer, jsonl=DIR) writes to"
    )
    parser.add_argument("--once", action="store_true", help="print the table once and end")
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="S", help="seconds between two looks (default: %(default)g)"
    )
    parser.add_argument("--run", metavar="NAME", help="this run; default: the newest in the folder")
    parser.epilog = (
        "Times are those of the last rows that each rank wrote. 'own' is the part of a step that is not waited. A run "
        "that is over is printed once. docs/observing.md explains the columns."
    )


def main(args: argparse.Namespace) -> int:
    """Show the table.

    Raises:
        ConfigurationError: there are no metrics, an argument cannot be used, or rich is missing.
    """
    from ..errors import ConfigurationError
    from ..installed import install_command
    from ..observe.report.reading import Folder

    if not args.interval > 0:
        raise ConfigurationError(f"--interval {args.interval:g}: expected seconds, above 0")
    try:
        console = import_module("rich.console").Console()
    except ImportError as error:
        raise ConfigurationError(f"`pushsum top` needs rich ({error}): {install_command('observe')}") from error
    folder = Folder(args.directory, args.run)
    try:
        watch(folder, console, args.interval, once=args.once or not console.is_terminal)
    except KeyboardInterrupt:
        return 0
    if folder.others:
        print(f"older runs in {args.directory}: {', '.join(folder.others[:4])} (--run NAME)", file=sys.stderr)
    return 0


def watch(
    folder: Folder,
    console: Any,
    interval: float,
    *,
    once: bool,
    sleep: Callable[[float], object] = time.sleep,
    now: Callable[[], float] = time.time,
) -> None:
    """Show a run until it is over.

    Args:
        console: rich's.
        once: look once only.
    """
    from .top_table import table

    run = folder.look()
    if once or _over(run, now()):
        console.print(table(run, now(), console.width))
        return
    with import_module("rich.live").Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            live.update(table(run, now(), console.width, console.height), refresh=True)
            if run.ended():
                return
            sleep(interval)
            run = folder.look()


def _over(run: Run, now: float) -> bool:
    return run.ended() or now - run.seen > SILENT_S
