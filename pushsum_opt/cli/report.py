"""``pushsum report``: a page on what a run did, and what to change."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["HELP", "NAME", "add_arguments", "main"]

NAME = "report"
HELP = "Write a page on a run: where steps go, who waits for whom, what to change (from Metrics' files)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="the folder that Metrics(optimizer, jsonl=DIR) writes to"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), metavar="OUT", help="the file to write (report.html)"
    )
    parser.add_argument("--run", metavar="NAME", help="this run; default: the newest in the folder")
    parser.epilog = (
        "The page is one file, which any browser shows without a network. It may be made while the run goes on, and "
        "after a run that was killed. The advice is printed too."
    )


def main(args: argparse.Namespace) -> int:
    """Write the page, and print the advice.

    Raises:
        ConfigurationError: there are no metrics, no rank has written a row, or the page cannot be written.
    """
    from ..errors import ConfigurationError
    from ..observe.report.advice import advise
    from ..observe.report.page import page
    from ..observe.report.reading import Folder

    folder = Folder(args.directory, args.run)
    run = folder.look()
    if not any(log.rows for log in run.ranks.values()):
        raise ConfigurationError(
            f"{args.directory}: no rank of run {run.name} has written a row: the first one comes after "
            f"{run.about['every']} rounds"
        )
    try:
        args.output.write_text(page(run), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{args.output}: cannot be written: {error}") from error
    with_rows = sum(bool(log.rows) for log in run.ranks.values())
    print(f"{args.output}: run {run.name}, {with_rows} of {run.size} ranks")
    for advice in advise(run):
        print(f"- {advice.text}")
    if folder.others:
        print(f"left out older runs in {args.directory}: {', '.join(folder.others[:4])} (--run NAME)")
    return 0
