"""Writes the table of docs/rank-loss.md from what the tests prove.

    python docs/draw_deaths.py

The rows are in tests/mpi/deaths.py; tests/mpi/test_deaths.py lets ranks die in each of these ways.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "rank-loss.md"


def with_table(page: str, table: str) -> str:
    """Return the page with its table replaced.

    >>> with_table("a <!-- deaths --> old <!-- end --> b", "new")
    'a <!-- deaths -->\\n\\nnew\\n\\n<!-- end --> b'
    """
    return re.sub(
        r"(<!-- deaths -->).*?(<!-- end -->)", lambda mark: f"{mark[1]}\n\n{table}\n\n{mark[2]}", page, flags=re.S
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    from mpi.deaths import table

    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table()), encoding="utf-8")
