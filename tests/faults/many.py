"""Runs the seeded tests of deaths on very many seeds: what the suite has a sample of.

    python tests/faults/many.py --cases 10000
    python tests/faults/many.py --cases 500 --first 20000 --of loops

Each case draws its ranks (2 to 9), its mode, its graph, who dies (up to all ranks but one) and when. It ends with code
1 after the first case that fails, and prints the seed of it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import pytest
import torch._dynamo  # noqa: F401  (the first step would import it, and on a busy machine take longer than a timeout)

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults import test_against_the_oracle, test_loops, test_survival

from pushsum_opt import testing

DIED: list[int] = []


def against_the_oracle(seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        facts = test_against_the_oracle.recorded(patch)
        test_against_the_oracle.test_whoever_dies_at_whatever_moment_survivors_follow_the_paper(seed, facts)


def loops(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        test_loops.test_loops_stay_in_step_whoever_dies_at_whatever_moment(seed, Path(folder))


KINDS = {
    "survival": test_survival.test_whoever_dies_at_whatever_moment,
    "oracle": against_the_oracle,
    "loops": loops,
}
SHARES = ["survival"] * 7 + ["oracle"] * 2 + ["loops"]


def counted() -> None:
    """Have every death counted."""
    run = testing.run

    def run_and_count(size, function, *, faults=None, **options):
        try:
            return run(size, function, faults=faults, **options)
        finally:
            if faults is not None:
                DIED.append(len(faults.died))

    testing.run = run_and_count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="default 1000")
    parser.add_argument("--first", type=int, default=10_000, help="seed of the first case (default 10000)")
    parser.add_argument("--of", choices=list(KINDS), help="only these; default: of ten cases 7, 2 and 1")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after so many seconds")
    parser.add_argument("--go-on", action="store_true", help="print cases that fail, and go on")
    arguments = parser.parse_args()
    logging.getLogger("pushsum_opt").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    counted()
    begin, failed, cases = time.monotonic(), 0, 0
    for seed in range(arguments.first, arguments.first + arguments.cases):
        if time.monotonic() - begin > arguments.seconds:
            break
        kind = arguments.of or SHARES[seed % len(SHARES)]
        try:
            KINDS[kind](seed)
        except Exception:
            traceback.print_exc()
            print(f"{kind}, seed {seed}: failed", flush=True)
            failed += 1
            if not arguments.go_on:
                sys.exit(1)
        cases += 1
        if cases % 100 == 0:
            said(begin, cases, failed)
    said(begin, cases, failed)
    sys.exit(bool(failed))


def said(begin: float, cases: int, failed: int) -> None:
    several, seconds = sum(died > 1 for died in DIED), time.monotonic() - begin
    print(
        f"{cases} cases, {sum(DIED)} deaths ({several} cases with several), {failed} failed, {seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
