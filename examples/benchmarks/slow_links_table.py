"""What a language model reaches, and how many bytes a rank sends for it: all-reduce, gossip, and rarer exchanges.

    python examples/benchmarks/slow_links_table.py --rows slow_links.jsonl
    python examples/benchmarks/slow_links_table.py --ranks 4 8 --rates 1e-2 --seeds 3 --only ddp sgp sgp/8 noloco/50
    python examples/benchmarks/slow_links_table.py --wire int8 --only sgp sgp/8 noloco/50
    python examples/benchmarks/slow_links_table.py --show --svg docs/images/slow-links.svg             # runs nothing

Every row is the loss of the average model on text that was not trained on, in nats per byte, and what a rank has sent.
All contenders of a seed and a number of ranks start from the same model, see the same batches and follow the same
schedule: those of examples/language_model.py, whose model and text these are. A contender is an algorithm and after how
many steps it exchanges: sgp, sgp/8, noloco/50, diloco/50. "alone" is one rank that sends nothing, on its own batches:
whoever does not beat it, exchanges for nothing.

The ranks are threads of one process (pushsum_opt.testing): no figure here is about time. Bytes are those that rounds
count. "ddp" computes the gradient of the mean over all ranks' batches in one rank, which is what DDP computes; its
bytes, and those of diloco, are what a ring sends in all-reduces of float32.

Rows are written as they come; a run that was cut short goes on where it stopped when the command is given again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import pushsum_opt as ps

sys.path.insert(0, str(Path(__file__).parents[1]))
import language_model as recipe

CPU = torch.device("cpu")
RESULTS = ("loss", "bytes", "seconds")
WITH_OUTER_STEP = ("noloco", "diloco")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=["ddp", "sgp", "sgp/8", "noloco/50", "diloco/50", "alone"], metavar="WHO"
    )
    parser.add_argument("--wire", nargs="+", default=["float32"], help="of all but ddp and diloco (default float32)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4], help="(default 4)")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-3, 1e-2, 2e-2], help="(default 5e-3 1e-2 2e-2)")
    parser.add_argument("--outer", nargs="+", default=["0.7,0.5"], metavar="LR,MOMENTUM", help="(default 0.7,0.5)")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default 1: 0)")
    parser.add_argument("--from-seed", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--steps", type=int, default=600, help="(default 600)")
    parser.add_argument("--batch", type=int, default=8, help="pieces of 64 bytes per rank and step (default 8)")
    parser.add_argument("--width", type=int, default=32, help="of the model's two layers (default 32)")
    parser.add_argument("--rows", type=Path, default=Path("slow_links.jsonl"), help="(default slow_links.jsonl)")
    parser.add_argument("--show", action="store_true", help="run nothing: show the rows that are there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the rows")
    arguments = parser.parse_args()
    if not arguments.show:
        torch.set_num_threads(1)
        logging.getLogger("pushsum_opt").setLevel(logging.ERROR)
        texts = recipe.read(None)
        for cell in cells(arguments):
            if cell not in there(arguments.rows):
                write(arguments.rows, cell, *texts)
    show(read(arguments.rows))
    if arguments.svg:
        from slow_links_picture import draw

        arguments.svg.write_text(draw(best_outer(lines(read(arguments.rows)))))


# ---------------------------------------------------------------------- which runs there are


def cells(arguments: argparse.Namespace) -> Iterator[dict]:
    """Give every run; seeds are the outer loop, so that a series that is cut short has whole seeds."""
    seeds = range(arguments.from_seed, arguments.from_seed + arguments.seeds)
    for seed, ranks, rate, who in itertools.product(seeds, arguments.ranks, arguments.rates, arguments.only):
        algorithm = who.partition("/")[0]
        wires = arguments.wire if algorithm in ("sgp", "noloco") else ["float32"]
        for wire, outer in itertools.product(wires, arguments.outer if algorithm in WITH_OUTER_STEP else [""]):
            yield {
                "who": who,
                "wire": wire,
                "outer": outer,
                "ranks": ranks,
                "rate": rate,
                "seed": seed,
                "steps": arguments.steps,
                "batch": arguments.batch,
                "width": arguments.width,
            }


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def there(path: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in RESULTS} for row in read(path)]


# ---------------------------------------------------------------------- one run


def write(rows: Path, cell: dict, text: object, held_out: object) -> None:
    begin = time.perf_counter()
    loss, sent = train(cell, text, held_out)
    row = {**cell, "loss": round(loss, 5), "bytes": sent, "seconds": round(time.perf_counter() - begin, 1)}
    with rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def train(cell: dict, text: object, held_out: object) -> tuple[float, int]:
    """Return the loss of the average model after all steps, and the bytes that rank 0 has sent."""
    torch.manual_seed(cell["seed"])
    model = recipe.GPT(cell["width"], layers=2, heads=2, length=64)
    options = options_of(cell)
    ranks = cell["ranks"]
    if options.algorithm in ("ddp", "alone"):
        optimizer = recipe.adamw(model, cell["rate"])
        loop(cell, model, optimizer, text, range(ranks if options.algorithm == "ddp" else 1))
        sent = recipe.bytes_sent(options, model, optimizer, cell["steps"], ranks) if options.algorithm == "ddp" else 0
        return recipe.validate(model, held_out, 2048, 64, CPU), sent

    def rank(comm: object) -> tuple[dict | None, int]:
        mine = copy.deepcopy(model)
        with recipe.wrap(options, mine, recipe.adamw(mine, cell["rate"]), comm=comm) as optimizer:
            loop(cell, mine, optimizer, text, [comm.rank])
            sent = recipe.bytes_sent(options, mine, optimizer, cell["steps"], ranks)
            return optimizer.averaged_state_dict(), sent

    average, sent = ps.testing.run(ranks, rank, timeout=3600.0)[0]
    model.load_state_dict(average)
    return recipe.validate(model, held_out, 2048, 64, CPU), sent


def options_of(cell: dict) -> argparse.Namespace:
    """Return the arguments of the recipe that make this run."""
    algorithm, _, every = cell["who"].partition("/")
    outer_lr, _, outer_momentum = cell["outer"].partition(",")
    return argparse.Namespace(
        algorithm=algorithm,
        gossip_every=int(every) if every else None,
        wire="float32" if algorithm == "diloco" else None if cell["wire"] == "float32" else cell["wire"],
        staleness="0",
        graph=None,
        outer_lr=float(outer_lr) if outer_lr else None,
        outer_momentum=float(outer_momentum) if outer_momentum else None,
    )


def loop(cell: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer, text: object, ranks: object) -> None:
    """Train on the batches of some ranks: one in gossip, all where one process computes what DDP does."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.warm_up_and_decay(cell["steps"], 30))
    for step in range(cell["steps"]):
        parts = [recipe.batch(text, (cell["seed"], rank, step), cell["batch"], 64, CPU) for rank in ranks]
        optimizer.zero_grad()
        recipe.loss_of(model, *map(torch.cat, zip(*parts, strict=True))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


# ---------------------------------------------------------------------- the table


def lines(rows: list[dict]) -> list[dict]:
    """Return the best rate of every contender: its losses by seed, its bytes, and the same of DDP."""
    found = []
    key = lambda row: (row["ranks"], row["steps"], row["batch"], row["width"], row["who"], row["wire"], row["outer"])  # noqa: E731
    for series, of_series in itertools.groupby(sorted(rows, key=key), key):
        by_rate: dict[float, dict[int, float]] = {}
        group = list(of_series)
        for row in group:
            by_rate.setdefault(row["rate"], {})[row["seed"]] = row["loss"]
        # The rate is chosen on the first seed, which has run with all of them.
        rate = min(by_rate, key=lambda one: by_rate[one].get(0, float("inf")))
        names = ("ranks", "steps", "batch", "width", "who", "wire", "outer")
        rates = {one: losses.get(0) for one, losses in sorted(by_rate.items())}
        line = dict(zip(names, series, strict=True)) | {"rate": rate, "losses": by_rate[rate], "rates": rates}
        found.append(line | {"bytes": group[0]["bytes"]})
    setting = ("ranks", "steps", "batch", "width")
    for line in found:
        same = (one for one in found if one["who"] == "ddp" and all(one[name] == line[name] for name in setting))
        line["ddp"] = next(same, None)
    return sorted(found, key=lambda line: (*(line[name] for name in setting), -line["bytes"], line["who"]))


def best_outer(found: list[dict]) -> list[dict]:
    """Return the lines with the best rates of the outer step only, one for each contender and type on the wire."""
    best: dict[tuple, dict] = {}
    for line in found:
        key = tuple(line[name] for name in ("ranks", "steps", "batch", "width", "who", "wire"))
        if key not in best or min(line["rates"].values()) < min(best[key]["rates"].values()):
            best[key] = line
    return list(best.values())


def show(rows: list[dict]) -> None:
    """Print a line for every contender; differences are between means over the seeds that DDP has run too."""
    for setting, of_setting in itertools.groupby(
        lines(rows), lambda line: (line["ranks"], line["steps"], line["batch"], line["width"])
    ):
        ranks, steps, batch, width = setting
        print(f"\n{ranks} ranks, {steps} steps, {batch} pieces per rank and step, width {width}")
        for line in of_setting:
            print(described(line))


def name_of(line: dict) -> str:
    outer = f", outer {line['outer'].replace(',', ' and ')}" if line["outer"] else ""
    return line["who"] + (f", {line['wire']}" if line["wire"] != "float32" else "") + outer


def described(line: dict) -> str:
    losses = list(line["losses"].values())
    spread = f"{min(losses):.3f}..{max(losses):.3f}" if len(losses) > 1 else ""
    rates = "  ".join(f"{rate:g}: {'-' if loss is None else f'{loss:.4f}'}" for rate, loss in line["rates"].items())
    return (
        f"  {name_of(line):36} {line['bytes'] / 1e6:10.3f} MB {share(line):>9}  rate {line['rate']:<7g} "
        f"{statistics.fmean(losses):.4f} {spread:14} n={len(losses)} {difference(line):>8}   seed 0: {rates}"
    )


def share(line: dict) -> str:
    return f"{100 * line['bytes'] / line['ddp']['bytes']:.2f} %" if line["ddp"] else "-"


def difference(line: dict) -> str:
    seeds = line["losses"].keys() & line["ddp"]["losses"].keys() if line["ddp"] else ()
    if not seeds:
        return "-"
    own, other = (statistics.fmean(one["losses"][seed] for seed in seeds) for one in (line, line["ddp"]))
    return f"{100 * (own / other - 1):+.1f} %"


if __name__ == "__main__":
    main()
