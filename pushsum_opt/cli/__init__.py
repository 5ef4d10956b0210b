"""The command ``pushsum``: each subcommand is one module here, and only the one that is called is imported.

A subcommand's module has ``NAME``, ``HELP`` (one line), ``main(args) -> int`` and ``add_arguments(parser)``. Where some
words of the command line are for another program, it has ``parse_arguments(argv)`` in place of the last.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from ..errors import PushSumError

__all__ = ["COMMANDS", "main"]

COMMANDS = ("run", "doctor", "graphs", "consolidate", "timeline", "top", "report")
"""The subcommands, in the order in which the help lists them; each is the name of a module beside this file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code: 0, 1 for an error that was printed, 2 for a call not understood."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_help())
            return 0 if words else 2
        if words[0] == "--version":
            print(f"pushsum-opt {import_module('pushsum_opt').__version__}")
            return 0
        if words[0] not in COMMANDS:
            print(f"pushsum: no command {words[0]!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
            return 2
        code = _call(_module(words[0]), words[1:])
        sys.stdout.flush()
        return code
    except PushSumError as error:
        print(f"pushsum {words[0]}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `pushsum ... | head`: head has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _call(module: ModuleType, words: list[str]) -> int:
    if hasattr(module, "parse_arguments"):
        arguments = module.parse_arguments(words)
    else:
        parser = argparse.ArgumentParser(prog=f"pushsum {module.NAME}", description=module.HELP)
        module.add_arguments(parser)
        arguments = parser.parse_args(words)
    code: int = module.main(arguments)
    return code


def _help() -> str:
    lines = ["usage: pushsum COMMAND [arguments]", "", "Gossip training with PyTorch over MPI.", ""]
    width = 2 + max(map(len, COMMANDS))
    lines += [f"  {module.NAME:<{width}}{module.HELP}" for module in map(_module, COMMANDS)]
    return "\n".join([*lines, "", "pushsum COMMAND --help says more; pushsum --version"])


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name}")
