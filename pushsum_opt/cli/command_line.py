"""The command line of ``pushsum run``: where mpirun's options end, and what each rank runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigurationError

__all__ = ["split"]

_EXAMPLE = "Example: pushsum run -np 4 train.py"

_RANKS = r"--?(?:np|n)|--nproc[-_]per[-_]node|--num[-_]proc(?:esse)?s?"
_SAME_MACHINE = re.compile(r"--standalone|--nnodes=1(?::1)?")  # torchrun's: needed for nothing here
_TORCHRUN = re.compile(
    r"--(?:nnodes|node[-_]rank|master[-_](?:addr|port)|rdzv[-_]\w+|num[-_]machines|machine[-_]rank)$"
)
_PYTHON = ("python", "python3")

_TWO_VALUES = ("mca", "gmca", "omca", "prtemca", "pmixmca", "genv", "env")
_ONE_VALUE = (
    *("np", "n", "c", "x", "H", "f", "host", "hosts", "hostfile", "machinefile", "default-hostfile", "map-by"),
    *("rank-by", "bind-to", "wdir", "wd", "output", "stdin", "path", "prefix", "npernode", "N", "cpu-set", "cpu-list"),
    *("rankfile", "rf", "tune", "timeout", "with-ft", "enable-recovery", "runtime-options", "display", "personality"),
    *("ppn", "perhost", "genvlist", "envlist", "iface", "launcher", "launcher-exec", "rmk", "bootstrap"),
    *("app", "configfile", "report-uri", "pset", "preload-files", "add-host", "add-hostfile", "max-restarts"),
    *("am", "dvm", "dvm-uri"),
    *("restarts", "spares"),  # our own
)


def split(words: Sequence[str], python: str) -> tuple[list[str], list[str]]:
    """Divide the command line into mpirun's options and the program that each rank runs.

    As with mpirun, the program is the first word that is neither an option nor the value of one. The number of ranks
    may be spelled as other launchers spell it; it comes back as ``-np N``.

    Args:
        python: what takes the place of ``python`` and runs scripts and modules.

    Raises:
        ConfigurationError: there is no program, its file does not exist, or an option of torchrun has no counterpart.
    """
    options: list[str] = []
    rest = list(words)
    unknown = False  # whether the word before was an unknown option, which may take a value
    while rest:
        word = rest[0]
        if word in ("-m", "--module"):
            return options, _module(rest, python)
        if word == "--":
            return options, _program(rest[1:], python, words)
        if word.startswith("-") and word != "-":
            taken, given, unknown = _option(rest)
            options += given
            rest = rest[taken:]
        elif unknown and not word.endswith(".py") and not _is_program(word):
            options.append(rest.pop(0))
            unknown = False
        else:
            return options, _program(rest, python, words)
    raise _no_program(words)


def _option(rest: Sequence[str]) -> tuple[int, list[str], bool]:
    """Return how many words an option takes, what mpirun is given for it, and whether a value may follow unknown."""
    word = rest[0]
    ranks = re.fullmatch(rf"({_RANKS})(?:=(.*)|(\d+))?", word, re.DOTALL)
    if ranks is not None:
        _refuse_all_gpus(word if "=" in word else " ".join(rest[:2]))
        if ranks[2] is not None or ranks[3] is not None:
            return 1, ["-np", ranks[2] if ranks[2] is not None else ranks[3]], False
        spelled = "-np" if "nproc" in word or "num" in word else word
        return 2, [spelled, *rest[1:2]], False
    if _SAME_MACHINE.fullmatch(word):
        return 1, [], False
    if word == "--nnodes" and rest[1:2] in (["1"], ["1:1"]):
        return 2, [], False
    if _TORCHRUN.match(word.partition("=")[0]):
        raise ConfigurationError(
            f"{word}: an option of torchrun or accelerate. `pushsum run` starts the ranks of all hosts from one of "
            "them: give the number of all ranks and the hosts, `pushsum run -np 8 --host a:4,b:4 train.py`"
        )
    name = word.lstrip("-")
    if "=" in name:
        return 1, [word], False
    values = 2 if name in _TWO_VALUES else 1 if name in _ONE_VALUE else 0
    return 1 + values, list(rest[: 1 + values]), values == 0


def _refuse_all_gpus(text: str) -> None:
    if re.search(r"[= ](gpu|auto|cpu)$", text):
        raise ConfigurationError(f"{text}: expected a number of ranks, at least 1. {_EXAMPLE}")


def _module(rest: list[str], python: str) -> list[str]:
    if len(rest) == 1:
        raise ConfigurationError(f"{rest[0]} is the last word; expected the name of a module after it")
    return [python, "-m", *rest[1:]]


def _program(rest: list[str], python: str, words: Sequence[str]) -> list[str]:
    """Return what each rank runs; a script and a folder with a ``__main__.py`` are for Python."""
    if not rest:
        raise _no_program(words)
    first = rest[0]
    path = Path(first)
    if first in ("-m", "--module"):
        return _module(rest, python)
    if first in _PYTHON:
        return [python, *_arguments_of_python(rest[1:])]
    if first.endswith(".py") or (path.is_dir() and (path / "__main__.py").is_file()):
        _refuse_missing(first)
        return [python, *rest]
    if path.is_dir():
        raise ConfigurationError(f"{first!r} is a folder without a __main__.py: expected a script. {_EXAMPLE}")
    if shutil.which(first) is not None:
        return rest
    if path.is_file() and os.access(path, os.X_OK):  # mpirun looks on PATH, unless there is a folder in the name
        return [first if path.parent.parts else os.path.join(os.curdir, first), *rest[1:]]
    if path.is_file():
        shell = "bash" if path.suffix in (".sh", ".bash") else "python"
        raise ConfigurationError(
            f"{first!r} cannot be executed. Name what runs it, `pushsum run -np 4 {shell} {first}`, or "
            f"`chmod +x {first}`"
        )
    raise ConfigurationError(
        f"{first!r} is neither a file in {Path.cwd()} nor a program on PATH; expected a script that ends in .py, "
        f"`-m module` or a program. {_EXAMPLE}"
    )


def _arguments_of_python(rest: list[str]) -> list[str]:
    if not rest:
        raise ConfigurationError(f"python is the last word; expected a script after it. {_EXAMPLE}")
    if rest[0].endswith(".py"):
        _refuse_missing(rest[0])
    return rest


def _refuse_missing(script: str) -> None:
    if not Path(script).exists():
        raise ConfigurationError(f"there is no file {script!r} in {Path.cwd()}; check the name and the folder")
    if script.endswith(".py") and Path(script).is_dir():
        raise ConfigurationError(f"{script!r} is a folder: expected a script. {_EXAMPLE}")


def _is_program(word: str) -> bool:
    return word in _PYTHON or shutil.which(word) is not None or Path(word).exists()


def _no_program(words: Sequence[str]) -> ConfigurationError:
    return ConfigurationError(
        f"found no script in {shlex.join(words)!r}: expected a name that ends in .py, `-m module`, or a program. "
        f"{_EXAMPLE}"
    )
