"""A small Transformer with Adam on emulated hosts: loss and BLEU over time.

    python examples/message_catalogues.py messages django wagtail plone.app.locales
    python examples/benchmarks/evidence.py translation --texts messages                   # as root

All-reduce, push-sum (also with ``adaptive="corrected"``), and local Adam (every rank alone, and the average of all
models every 8 steps) train the "tiny" model of examples/translation.py on the same batches with the same learning
rates. Time is that of training alone, without evaluation. All ranks compute for real, on this machine's cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import islice
from pathlib import Path

import torch
from emulated_hosts import EmulatedHosts, emulated_hosts, possible
from mpi4py import MPI
from torch.nn.utils import vector_to_parameters
from translation import MODELS, Run, Transformer, inverse_square_root, shares

from .contenders import COLOURS, LABELS, contender
from .room import Row, add_row, missing, mpirun, read_rows, spread

CONTENDERS = ("all-reduce", "sgp", "corrected", "tau 1", "corrected tau 1", "local sgd")
NAMES = {**LABELS, "local sgd": "local Adam"}
SAME = ("steps", "tokens", "rate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--texts", type=Path, default=Path("messages"), help="a folder with train.en, train.de, valid..."
    )
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rate", default="100mbit", help="of each host's link, or none: one host (default 100mbit)")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=1000, help="per rank and step (default 1000)")
    parser.add_argument("--sentences", type=int, default=200, help="to evaluate on, the first so many (default 200)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=LABELS, default=CONTENDERS)
    parser.add_argument("--rows", type=Path, default=Path("translation.jsonl"), help="the file of runs that have ended")
    parser.add_argument("--show", action="store_true", help="run nothing: show what this file has")
    parser.add_argument("--plot", type=Path, help="draw loss over time into this file")


def table(arguments: argparse.Namespace) -> list[Row]:
    if not arguments.show:
        passed_on = ["texts", "rate", "steps", "tokens", "sentences", "seeds", "only", "rows"]
        if arguments.rate == "none":
            mpirun("translation", EmulatedHosts(arguments.hosts), arguments, passed_on)
        elif obstacle := possible():
            sys.exit(f"{obstacle}; --rate none runs everything on one host")
        else:
            with emulated_hosts(arguments.hosts, arguments.rate) as hosts:
                mpirun("translation", hosts, arguments, passed_on)
    rows = read_rows(arguments.rows)
    show(rows)
    if arguments.plot:
        plot(rows, arguments.plot)
    return rows


def work(arguments: argparse.Namespace) -> None:
    """One rank: train with every contender and seed that the file of rows does not have yet."""
    comm = MPI.COMM_WORLD
    texts = {"train": str(arguments.texts / "train"), "valid": str(arguments.texts / "valid")}
    languages = {"source": "en", "target": "de", "vocabulary": 2000, "longest": 100, "autocast": None}
    evaluation = {"sentences": 50, "beam": 0, "length_penalty": 0.6, "label_smoothing": 0.1}
    size = {"tokens": arguments.tokens, "tokens_per_step": arguments.tokens * comm.size}
    run = Run(argparse.Namespace(**texts, **languages, **evaluation, **size), torch.device("cpu"))
    run.valid = run.valid[: arguments.sentences]
    run.valid_texts = tuple(text[: arguments.sentences] for text in run.valid_texts)
    same = {"ranks": comm.size, **{name: getattr(arguments, name) for name in SAME}}
    wanted = [{"contender": name, "seed": seed, **same} for seed in range(arguments.seeds) for name in arguments.only]
    for row in comm.bcast(missing(wanted, arguments.rows)):
        row |= one(run, row["contender"], row["seed"], arguments.steps)
        if comm.rank == 0:
            add_row(arguments.rows, row)
            said = f"{row['contender']:10} seed {row['seed']}: loss {row['loss'][-1]:.3f}, BLEU {row['bleu']:.1f}"
            print(f"{said}, {row['seconds'][-1]:.0f} s", flush=True)


def one(run: Run, name: str, seed: int, steps: int) -> Row:
    comm = MPI.COMM_WORLD
    torch.manual_seed(seed)
    width, *rest = MODELS["tiny"]
    model, copy = (Transformer(run.tokenizer.get_vocab_size(), width, *rest) for _ in range(2))
    torch.manual_seed(1000 * seed + comm.rank)  # dropout differs
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-9)
    rate = inverse_square_root(width, max(1, steps // 5))
    who = contender(name, model, optimizer)
    todo = islice(shares(len(run.batches), seed, 1, 0), steps)
    every, seconds, found = max(1, steps // 10), [0.0], []
    comm.barrier()
    start = time.perf_counter()
    for step, mine in enumerate(todo, 1):
        optimizer.param_groups[0]["lr"] = 0.5 * rate(step - 1)
        optimizer.zero_grad()
        run.backward(who.module, who.late, mine)
        who.step()
        if step % every == 0:
            seconds.append(seconds[-1] + time.perf_counter() - start)
            vector_to_parameters(who.average(), copy.parameters())
            run.arguments.beam = 1 if step == every * 10 else 0
            values = run.evaluate(copy)
            found.append(values["loss"])
            comm.barrier()
            start = time.perf_counter()
    who.close()
    return {"loss": found, "bleu": values["bleu"], "seconds": seconds[1:], "date": time.strftime("%Y-%m-%d")}


def show(rows: list[Row]) -> None:
    for kind in sorted({tuple(row[name] for name in ("ranks", *SAME)) for row in rows}):
        mine = [row for row in rows if tuple(row[name] for name in ("ranks", *SAME)) == kind]
        ranks, steps, tokens, rate = kind
        print(f"\n{ranks} ranks, links of {rate}, {steps} steps of {tokens} tokens per rank")
        print("contender                 seeds  loss                      BLEU                  seconds of training")
        for name in LABELS:
            if some := [row for row in mine if row["contender"] == name]:
                print(
                    f"{NAMES[name]:25} {len(some):5}  {spread((row['loss'][-1] for row in some), 3):25} "
                    f"{spread((row['bleu'] for row in some), 1):21} {spread((row['seconds'][-1] for row in some), 0)}"
                )


def plot(rows: list[Row], path: Path) -> None:
    """Draw the loss of every run over the seconds of training."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    named: set[str] = set()
    for row in rows:
        name = row["contender"]
        label = None if name in named else NAMES[name]
        axes.plot(row["seconds"], row["loss"], color=COLOURS[name], linewidth=1.2, label=label)
        named.add(name)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("validation loss, nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
