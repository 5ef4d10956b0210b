"""Translates options of Open MPI's mpirun into those of MPICH's (Hydra).

Hydra answers ``-H`` with its help and exit code 0, takes ``-N`` for ``-n``, and ends with a message about its own
source code at other options. So options with a counterpart are translated. The rest is refused by name, before anything
starts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigurationError

__all__ = ["translate"]

_SAME = {  # Open MPI's name: Hydra's
    **dict.fromkeys(("H", "host", "hosts"), "hosts"),
    **dict.fromkeys(("hostfile", "machinefile", "default-hostfile", "f"), "f"),
    **dict.fromkeys(("N", "npernode", "perhost", "ppn"), "ppn"),
    **dict.fromkeys(("wd", "wdir"), "wdir"),
}
_TAGS = ("tag-output",)
_ALWAYS_SO = ("oversubscribe", "allow-run-as-root")
_PER_HOST = re.compile(r"ppr:(\d+):node")
_OPEN_MPIS_SLOTS = re.compile(r"^[^#\n]*\s(?:max[-_])?slots\s*=", re.MULTILINE)

_HYDRAS = """
    bind-to binding bootstrap bootstrap-exec configfile debug demux disable-auto-cleanup disable-hostname-propagation
    disable-x enable-x env envall envlist envnone errfile-pattern f genv genvall genvlist genvnone gpus-per-proc
    hostlist hosts hybrid-hosts iface info l launcher launcher-exec localhost machines map-by membind
    memory-alloc-kinds n nameserver np order-nodes outfile-pattern pmi-port ppn prepend-pattern prepend-rank
    print-all-exitcodes profile rankmap report-bindings rmk skip-launch-node topolib usize v verbose version wdir
""".split()  # noqa: SIM905
_VALUES = {"env": 2, "genv": 2, "x": 1, "output": 1}
_INSTEAD = {
    "mca": "MPICH has no MCA parameters; the network card is -iface NAME, the rest is said by MPIR_CVAR_ variables",
    "timeout": "set MPIEXEC_TIMEOUT=SECONDS before the command",
    "with-ft": "MPICH's mpirun cannot go on without a rank",
    "q": "leave it out",
}


def translate(options: Sequence[str]) -> list[str]:
    """Return mpirun's options as Hydra understands them.

    Raises:
        ConfigurationError: Hydra has nothing like one of them.

    >>> translate(["-np", "4", "-H", "a:2,b:2", "-x", "KEY=value", "-x", "HOME", "--oversubscribe"])
    ['-np', '4', '-hosts', 'a:2,b:2', '-genv', 'KEY', 'value']
    """
    found: list[str] = []
    rest = list(options)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):  # the value of an option before it
            found.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if equals:
            given, behind = [value], 0
        else:
            behind = _VALUES.get(name, 1)
            given = rest[:behind]
        words, taken = _translated(word, name, given)
        found += words
        del rest[: taken if not equals else 0]
    return found


def _translated(word: str, name: str, values: Sequence[str]) -> tuple[list[str], int]:
    """Return Hydra's words for an option, and how many words after the option they replace."""
    value = values[0] if values else ""
    if name in _SAME:
        if _SAME[name] == "f":
            _refuse_slots(value)
        return [f"-{_SAME[name]}", *values[:1]], 1
    if name == "x":
        variable, equals, its = value.partition("=")
        return ["-genv", variable, its] if equals else [], 1  # Hydra sends all variables by itself
    if name in _TAGS:
        return ["-prepend-rank"], 0
    if name == "output" and value in ("tag", "TAG"):
        return ["-prepend-rank"], 1
    if name in _ALWAYS_SO:
        return [], 0
    if name == "map-by" and (per_host := _PER_HOST.fullmatch(value)):
        return ["-ppn", per_host[1]], 1
    if name in ("env", "genv"):
        return [word, *values], len(values) if "=" not in word else 0
    if name in _HYDRAS:
        return [word], 0
    raise ConfigurationError(
        f"{word}: an option that the mpirun of MPICH does not have: {_INSTEAD.get(name, 'see `mpirun -help`')}. "
        "Understood besides MPICH's own: -H and --host, --hostfile, -x, -N, --map-by ppr:N:node, -wd, --output tag. "
        "Where your MPICH does have it, start the script with its mpirun: `mpirun ... python train.py`"
    )


def _refuse_slots(file: str) -> None:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # mpirun's own error says more
        return
    if _OPEN_MPIS_SLOTS.search(text):
        raise ConfigurationError(
            f"{file} is a host file in Open MPI's form, `node1 slots=4`, and this is the mpirun of MPICH: expected "
            "lines `node1:4`"
        )
