"""The paper's claims (Assran et al. 2019), each seen with one command: a table, JSON, and a picture where it helps.

    python examples/benchmarks/evidence.py deviations    # ranks stay apart in proportion to the learning rate
    python examples/benchmarks/evidence.py bias          # without the push weight, gossip optimises something else
    python examples/benchmarks/evidence.py hybrids       # denser rounds at the beginning
    python examples/benchmarks/evidence.py accuracy      # over 4, 8 and 16 ranks, against the baselines
    python examples/benchmarks/evidence.py stragglers    # time to an accuracy when ranks are slow
    python examples/benchmarks/evidence.py speed         # as root: throughput over emulated hosts
    python examples/benchmarks/evidence.py translation   # as root: a Transformer with Adam
    python examples/benchmarks/evidence.py bias --seeds 3 --epochs 5 --json bias.json

In the first three, 8 ranks in threads of one process train the network of examples/digits.py. The others start real
ranks by mpirun. In every table all rows begin with the same weights and see the same batches.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from claims import accuracy, bias, deviations, hybrids, speed, stragglers, translation

TABLES = {
    "deviations": deviations,
    "bias": bias,
    "hybrids": hybrids,
    "accuracy": accuracy,
    "stragglers": stragglers,
    "speed": speed,
    "translation": translation,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = parser.add_subparsers(dest="table", required=True, metavar="TABLE", help=", ".join(TABLES))
    for name, table in TABLES.items():
        about = (table.__doc__ or "").strip()
        options = tables.add_parser(name, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        table.add_arguments(options)
        options.add_argument("--json", type=Path, help="write every figure to this file")
        options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.getLogger("pushsum_opt").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if arguments.worker:
        TABLES[arguments.table].work(arguments)
        return
    rows = TABLES[arguments.table].table(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
