"""Accuracy and time of examples/fashion_mnist.py in every mode, on hosts with slow links: a table, JSON and a picture.

    python examples/benchmarks/fashion_table.py --json fashion.json --plot fashion.png        # as root: 8 hosts
    python examples/benchmarks/fashion_table.py --rate 1gbit --seeds 0 1 2 3 4
    python examples/benchmarks/fashion_table.py --draw fashion.json --plot fashion.png        # runs nothing

Every mode trains the same network on the same batches with the same learning rates. The time is that of training alone,
until the last rank is through, without evaluation. All ranks share this machine's cores and compute for real: where
they are short of cores, the time says more about these than about the network.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[1] / "fashion_mnist.py"
MODES = {
    "ddp": ["--baseline", "ddp"],
    "sync": ["--staleness", "0"],
    "tau 1": ["--staleness", "1"],
    "tau 2": ["--staleness", "2"],
    "async": ["--staleness", "unbounded"],
}
LABELS = {
    "ddp": "DDP, gloo",
    "sync": "push-sum, synchronous",
    "tau 1": "push-sum, staleness 1",
    "tau 2": "push-sum, staleness 2",
    "async": "push-sum, unbounded",
}
COLOURS = {"ddp": "#d62728", "sync": "#9ecae1", "tau 1": "#08519c", "tau 2": "#3182bd", "async": "#2ca02c"}
MARGIN = 0.005  # of accuracy below DDP's final one: what the time is taken to


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--ranks-per-host", type=int, default=1)
    parser.add_argument("--rate", default="200mbit", help="of each host's link (default 200mbit), or none: one host")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="samples per rank and step (default 32)")
    parser.add_argument("--only", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--json", type=Path, help="write every line of every run to this file")
    parser.add_argument("--plot", type=Path, help="draw accuracy over time into this file")
    parser.add_argument("--draw", type=Path, help="run nothing: show and draw what --json has written")
    arguments = parser.parse_args()
    table = json.loads(arguments.draw.read_text()) if arguments.draw else measure(arguments)
    show(table)
    if arguments.plot:
        plot(table, arguments.plot)


def measure(arguments: argparse.Namespace) -> dict:
    """Train in every mode with every seed; seeds are the outer loop, so that a busy hour touches all modes alike."""
    from emulated_hosts import EmulatedHosts, emulated_hosts, possible

    obstacle = "asked for one host" if arguments.rate == "none" else possible()
    table: dict = {
        "date": time.strftime("%Y-%m-%d"),
        "hosts": 1 if obstacle else arguments.hosts,
        "ranks": arguments.hosts * arguments.ranks_per_host,
        "rate": "shared memory" if obstacle else arguments.rate,
        "batch": arguments.batch,
        "cores": len(os.sched_getaffinity(0)),
        "runs": {mode: [] for mode in arguments.only},
        "load": [],
    }
    if obstacle:
        print(f"{obstacle}: all ranks run on this one, over shared memory", file=sys.stderr)
    for seed in arguments.seeds:
        for mode in arguments.only:
            words = [*MODES[mode], "--seed", str(seed), "--epochs", str(arguments.epochs)]
            words += ["--batch", str(arguments.batch)]
            table["load"].append(os.getloadavg()[0])
            if obstacle:
                lines = train(EmulatedHosts(arguments.hosts, ranks_per_host=arguments.ranks_per_host), words)
            else:
                with emulated_hosts(arguments.hosts, arguments.rate, arguments.ranks_per_host) as hosts:
                    lines = train(hosts, words)
            table["runs"][mode].append(lines)
            print(f"{mode:6} seed {seed}: {lines[-1]['test_accuracy']:.2%}, {elapsed(lines)[-1]:.1f} s", flush=True)
            if arguments.json:  # after every run: a long series may be cut short
                arguments.json.write_text(json.dumps(table, indent=1))
    return table


def train(hosts, words: list[str]) -> list[dict]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "lines.json"
        command = hosts.mpirun([str(EXAMPLE), "--json", str(result), *words])
        done = subprocess.run(command, env=hosts.environment, capture_output=True, text=True, timeout=1200)
        if done.returncode:
            sys.exit((done.stdout + done.stderr)[-6000:])
        return [json.loads(line) for line in result.read_text().splitlines()]


def elapsed(lines: list[dict]) -> list[float]:
    """Return the seconds of training up to the end of each epoch."""
    return [sum(line["seconds"] for line in lines[: index + 1]) for index in range(len(lines))]


def time_to(lines: list[dict], accuracy: float) -> float | None:
    """Return the seconds after which the accuracy is first reached, on a line between the ends of epochs; None: never.

    Before the first epoch the accuracy is that of guessing, 10 %.
    """
    before = (0.0, 0.1)
    for seconds, line in zip(elapsed(lines), lines, strict=True):
        if line["test_accuracy"] >= accuracy:
            part = (accuracy - before[1]) / (line["test_accuracy"] - before[1])
            return before[0] + part * (seconds - before[0])
        before = seconds, line["test_accuracy"]
    return None


def finals(runs: list[list[dict]]) -> list[float]:
    return [lines[-1]["test_accuracy"] for lines in runs]


def show(table: dict) -> None:
    from emulated_hosts import spoken

    print(
        f"\n{table['date']}: {table['ranks']} ranks, hosts: {table['hosts']}, {spoken(table['rate'])}, "
        f"{table['batch']} samples per rank and step, {table['cores']} cores for all, "
        f"machine load {min(table['load']):.1f} to {max(table['load']):.1f}"
    )
    reference = table["runs"].get("ddp")
    goal = statistics.fmean(finals(reference)) - MARGIN if reference else None
    heads = {"runs": 6, "accuracy": 11, "lowest": 9, "highest": 9, "- ddp, points": 15, "s in all": 10}
    print(
        f"  {'mode':24}"
        + "".join(f"{head:>{width}}" for head, width in heads.items())
        + (f"   s to {goal:.2%}" if goal else "")
    )
    for mode, runs in table["runs"].items():
        if not runs:
            continue
        last = finals(runs)
        mean = statistics.fmean(last)
        against = f"{100 * (mean - goal - MARGIN):+15.2f}" if goal else f"{'':15}"
        total = statistics.fmean(elapsed(lines)[-1] for lines in runs)
        times = [time_to(lines, goal) for lines in runs] if goal else []
        reached = [seconds for seconds in times if seconds is not None]
        text = f"{statistics.fmean(reached):8.1f}" if reached else "   never" if times else ""
        missed = f" (in {len(reached)} of {len(times)} runs)" if 0 < len(reached) < len(times) else ""
        print(
            f"  {LABELS[mode]:24}{len(runs):6}{mean:11.2%}{min(last):9.2%}{max(last):9.2%}{against}{total:10.1f}"
            f"{text:>14}{missed}"
        )


def plot(table: dict, path: Path) -> None:
    """Draw the test accuracy after each epoch over the seconds of training: a thin line a run, a thick one the mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from emulated_hosts import spoken

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for mode, runs in table["runs"].items():
        accuracies = [[100 * line["test_accuracy"] for line in lines] for lines in runs]
        for lines, values in zip(runs, accuracies, strict=True):
            axes.plot(elapsed(lines), values, color=COLOURS[mode], linewidth=0.7, alpha=0.45)
        seconds = [statistics.fmean(column) for column in zip(*map(elapsed, runs), strict=True)]
        means = [statistics.fmean(column) for column in zip(*accuracies, strict=True)]
        axes.plot(seconds, means, color=COLOURS[mode], linewidth=2, marker="o", markersize=5, label=LABELS[mode])
    axes.set_xlabel("seconds of training (one point per epoch)")
    axes.set_ylabel("test accuracy of the averaged model, %")
    axes.set_xlim(left=0)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        f"Fashion-MNIST, {table['ranks']} ranks, hosts: {table['hosts']}, {spoken(table['rate'])}; "
        f"thick lines: mean of {max(map(len, table['runs'].values()))} seeds",
        fontsize=10,
    )
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
