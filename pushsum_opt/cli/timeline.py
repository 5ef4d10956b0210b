"""``pushsum timeline``: one trace out of the files that all ranks wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["HELP", "NAME", "add_arguments", "main"]

NAME = "timeline"
HELP = "Join what all ranks wrote with PUSHSUM_TIMELINE to one trace for ui.perfetto.dev."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the folder that PUSHSUM_TIMELINE named")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("trace.json"), metavar="OUT", help="the file to write (trace.json)"
    )
    parser.epilog = (
        "Open the file with ui.perfetto.dev. It may be made while the run goes on, and after a run "
        "that was killed. Where the folder holds several runs, the newest is taken."
    )


def main(args: argparse.Namespace) -> int:
    """Write the trace, and say what is in it.

    Raises:
        ConfigurationError: there are no timelines, or the trace cannot be written.
    """
    from ..errors import ConfigurationError
    from ..observe.timeline.reading import newest_run
    from ..observe.timeline.trace import write_trace

    recordings, older = newest_run(args.directory)
    try:
        said = write_trace(recordings, args.output)
    except OSError as error:
        raise ConfigurationError(f"{args.output}: cannot be written: {error}") from error
    print(f"{args.output}: {len(recordings)} of {said['ranks']} ranks, {said['arrows']} messages with both ends")
    print(f"clocks agree to {said['clock_error_us']:.0f} us or better")
    if said["ranks_without_a_file"]:
        print(f"no file of ranks {', '.join(map(str, said['ranks_without_a_file']))}")
    if older:
        print(f"left out {len(older)} older runs in {args.directory}")
    return 0
