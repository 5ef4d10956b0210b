"""Runs short commands one after the other beside a long one, so that no core of a small machine is idle.

python side_by_side.py COMMAND -- COMMAND -- ... -- LONG COMMAND

The output of the long one is seen as it comes, that of the others when they have all ended. All run to their end, also
where one fails; the exit code is 0 where all succeeded, and 1 otherwise.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
import time
from itertools import groupby


def split(words: list[str]) -> list[list[str]]:
    """Return the commands that stand between words ``--``.

    >>> split(["a", "b", "--", "c"])
    [['a', 'b'], ['c']]
    """
    return [list(part) for is_command, part in groupby(words, lambda word: word != "--") if is_command]


def main(words: list[str]) -> int:
    *short, long = split(words)
    said: list[str] = []
    failed: list[str] = []

    def one_after_the_other() -> None:
        for command in short:
            begin = time.monotonic()
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            name = shlex.join(command)
            said.append(f"== {name}: exit code {done.returncode}, {time.monotonic() - begin:.0f} s\n{done.stdout}")
            if done.returncode != 0:
                failed.append(name)

    beside = threading.Thread(target=one_after_the_other)
    beside.start()
    if subprocess.run(long).returncode != 0:
        failed.append(shlex.join(long))
    beside.join()
    print(*said, sep="\n")
    for name in failed:
        print(f"FAILED: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
