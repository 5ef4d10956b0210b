"""Throughput over the number of emulated hosts: DDP, D-PSGD, AD-PSGD, and push-sum, synchronous and overlapped.

Needs root (see emulated_hosts.py). Steps are those of slow_network.py: a sleep of 0.25 s takes the place of compute,
and DDP and D-PSGD move data meanwhile. A message takes as long, next to it, as one of ResNet-50 (25.5 M parameters)
would on a network of 10 or 100 Gbit/s: all links here have 1 Gbit/s, and the models have a tenth and a hundredth of
those parameters. Latency is not scaled. Throughput is in steps of all hosts per second of compute: with n hosts and
free communication it would be n.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from .room import Row

CONTENDERS = {
    "ddp": "DDP, gloo",
    "d-psgd": "D-PSGD",
    "ad-psgd": "AD-PSGD",
    "sync": "SGP, synchronous",
    "tau 1": "SGP, staleness 1",
}
NETWORKS = {"10": 2.55e6, "100": 2.55e5}  # Gbit/s of a network: parameters that are as much work on 1 Gbit/s
COMPUTE = 0.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="Gbit/s")
    parser.add_argument("--steps", type=int, default=16, help="timed steps of each contender (default 16)")
    parser.add_argument("--blocks", type=int, default=1, help="blocks that these are spread over (default 1)")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--plot", type=Path, help="draw throughput over hosts into this file")
    parser.add_argument("--draw", type=Path, help="run nothing: show and draw what --json has written")


def table(arguments: argparse.Namespace) -> list[Row]:
    rows = json.loads(arguments.draw.read_text()) if arguments.draw else measure(arguments)
    show(rows)
    if arguments.plot:
        plot(rows, arguments.plot)
    return rows


def measure(arguments: argparse.Namespace) -> list[Row]:
    import slow_network
    from emulated_hosts import emulated_hosts, possible

    if obstacle := possible():
        sys.exit(obstacle)
    rows = []
    for network in arguments.networks:
        steps = {"compute": COMPUTE, "steps": arguments.steps, "blocks": arguments.blocks, "jitter": 0.0}
        nobody = {"straggler": None, "hiccup": None, "within_host": None}
        one = argparse.Namespace(parameters=NETWORKS[network], rate="1gbit", only=arguments.only, **steps, **nobody)
        for count in arguments.hosts:
            with emulated_hosts(count, one.rate) as hosts:
                rows.append({"network": network, **slow_network.measure(hosts, one)})
            print(f"{network} Gbit/s, {count} hosts: {throughputs(rows[-1])}", flush=True)
    return rows


def throughputs(row: Row) -> dict[str, float]:
    """Return, for each contender, the steps of all hosts in the time of one step's compute, to three digits."""
    ideal = row["hosts"] * row["mean_compute"]
    return {name: round(ideal / statistics.fmean(seconds), 3) for name, seconds in row["seconds"].items()}


def show(rows: list[Row]) -> None:
    for network in dict.fromkeys(row["network"] for row in rows):
        some = [row for row in rows if row["network"] == network]
        print(f"\nThroughput at the ratio of ResNet-50 on {network} Gbit/s; the number of hosts would be ideal")
        print(f"{'':18}" + "".join(f"{row['hosts']:>4} hosts" for row in some))
        for name in some[0]["seconds"]:
            print(f"{CONTENDERS[name]:18}" + "".join(f"{throughputs(row)[name]:10.2f}" for row in some))


def plot(rows: list[Row], path: Path) -> None:
    """Draw one panel for each network."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from slow_network import COLOURS

    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure, panels = plt.subplots(
        1, len(networks), figsize=(4.4 * len(networks), 3.8), layout="constrained", sharey=True, squeeze=False
    )
    for axes, network in zip(panels[0], networks, strict=True):
        some = [row for row in rows if row["network"] == network]
        counts = [row["hosts"] for row in some]
        axes.plot(counts, counts, color="black", linewidth=0.8, linestyle=(0, (4, 3)), label="free communication")
        for name in some[0]["seconds"]:
            values = [throughputs(row)[name] for row in some]
            axes.plot(counts, values, marker="o", markersize=4, color=COLOURS[name], label=CONTENDERS[name])
        axes.set_xticks(counts)
        axes.set_xlabel("emulated hosts")
        axes.set_title(f"as ResNet-50 on {network} Gbit/s", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("steps of all hosts per step of compute")
    panels[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path, dpi=150)
