"""Train a small GPT on any text, and print validation loss against bytes sent: for networks that are slow.

    pushsum run -np 4 examples/language_model.py                                        # gossip in every step
    pushsum run -np 4 examples/language_model.py --gossip-every 8 --wire bfloat16
    pushsum run -np 4 examples/language_model.py --algorithm noloco --gossip-every 50
    pushsum run -np 4 examples/language_model.py --algorithm diloco --gossip-every 50   # all-reduce, rarely
    pushsum run -np 4 examples/language_model.py --algorithm ddp                        # all-reduce in every step
    mpirun -np 64 python examples/language_model.py --text corpus/ --width 512 --layers 8 --checkpoints out

The text is the source of Python's standard library, or what --text names; every 50th file is for validation. A token is
a byte, so any text will do. Every rank draws its own pieces of it. Rank 0 shows a bar, and prints one line of JSON now
and then: the loss is that of the average of all ranks, in nats per byte; the bytes are those that it has sent to train.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import sysconfig
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from tqdm import tqdm

import pushsum_opt as ps
from pushsum_opt.cli.graph_names import named_graph

VOCABULARY = 256  # bytes
GOSSIP_EVERY = {"sgp": 1, "noloco": 50, "diloco": 50, "ddp": 1}  # where it is not given


# ---------------------------------------------------------------------- text


def files(place: Path | None) -> list[Path]:
    """Return the files of a text: one file, all of a folder, or Python's standard library."""
    if place is not None and place.is_file():
        return [place]
    folder = Path(sysconfig.get_path("stdlib")) if place is None else place
    found = sorted(folder.rglob("*.py" if place is None else "*"))
    found = [one for one in found if "site-packages" not in one.parts and one.is_file()]
    if not found:
        sys.exit(f"rank {ps.rank()}: no files in {folder}: name a text, or a folder of texts, with --text")
    return found


def read(place: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes to train on and those to validate on: of one file its last 2 %, otherwise every 50th file."""
    texts = [np.frombuffer(one.read_bytes(), np.uint8) for one in files(place)]
    if len(texts) < 50:
        whole = np.concatenate(texts)
        cut = len(whole) * 49 // 50
        return whole[:cut], whole[cut:]
    return np.concatenate([one for k, one in enumerate(texts) if k % 50]), np.concatenate(texts[::50])


def pieces(text: np.ndarray, begins: np.ndarray, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return pieces of a text that begin at the given places, and what follows each of their bytes."""
    rows = torch.from_numpy(text[begins[:, None] + np.arange(length + 1)]).to(device, torch.long)
    return rows[:, :-1], rows[:, 1:]


def batch(
    text: np.ndarray, key: tuple[int, ...], count: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Draw pieces at random: the same ones for the same key, however often a run was stopped and resumed."""
    begins = np.random.default_rng(key).integers(0, len(text) - length, count)
    return pieces(text, begins, length, device)


# ---------------------------------------------------------------------- model


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a norm, each added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, length, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(samples, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(samples, length, width)
        x = x + self.out(seen)
        return x + self.down(gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    """Predicts the next byte. The matrix that reads bytes in is also the one that tells them apart at the end."""

    def __init__(self, width: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                into_sum = name.endswith(("out.weight", "down.weight"))  # 2 per layer add up
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * layers) if into_sum else 1.0))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.bytes(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.bytes.weight.T


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


@torch.no_grad()
def validate(model: nn.Module, text: np.ndarray, count: int, length: int, device: torch.device) -> float:
    """Collective. Return the loss on pieces spread evenly over a text; each rank takes its share of them."""
    mine = np.linspace(0, len(text) - length - 1, count).astype(np.int64)[ps.rank() :: ps.size()]
    total = 0.0
    for start in range(0, len(mine), 64):
        some = mine[start : start + 64]
        total += len(some) * loss_of(model, *pieces(text, some, length, device)).item()
    return ps.average(total, data_weight=1.0) * ps.size() / count


# ---------------------------------------------------------------------- training


def adamw(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """Weight decay is for matrices, not for norms and biases."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))


def warm_up_and_decay(steps: int, warm_up: int) -> Callable[[int], float]:
    """Return the factor of the learning rate at each step: up along a line, then down along a cosine to a tenth."""

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return factor


def ring_bytes(model: nn.Module, width: int, ranks: int) -> int:
    """Return what a rank sends in an all-reduce of the model along a ring, the least that one can send."""
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return 2 * (ranks - 1) * numbers * width // ranks


def start_ddp(model: nn.Module) -> nn.Module:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    backend = "nccl" if next(model.parameters()).is_cuda else "gloo"
    torch.distributed.init_process_group(backend, rank=ps.rank(), world_size=ps.size())
    return nn.parallel.DistributedDataParallel(model)


def every_of(arguments: argparse.Namespace) -> int:
    """Return how many steps there are from one exchange to the next."""
    return arguments.gossip_every or GOSSIP_EVERY[arguments.algorithm]


def wrap(
    arguments: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer, **more: Any
) -> ps.PushSumOptimizer:
    """Return the optimizer that exchanges what the arguments say."""
    every = every_of(arguments)
    staleness = arguments.staleness if arguments.staleness == "unbounded" else int(arguments.staleness)
    options = {"graph": named_graph(arguments.graph) if arguments.graph else None, "staleness": staleness}
    options |= {"wire_dtype": arguments.wire, **more}
    if arguments.algorithm == "sgp":
        return ps.PushSumOptimizer(optimizer, model, gossip_every=every, **options)
    kind = {"noloco": ps.algorithms.NoLoCo, "diloco": ps.algorithms.DiLoCo}[arguments.algorithm]
    algorithm = kind(every, arguments.outer_lr, arguments.outer_momentum)
    return ps.PushSumOptimizer(optimizer, model, algorithm=algorithm, **options)


def bytes_sent(
    arguments: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, ranks: int
) -> int:
    """Return what this rank has sent in so many steps: as counted; of an all-reduce, what a ring would send."""
    if arguments.algorithm == "ddp":
        return steps * ring_bytes(model, 4, ranks)
    if arguments.algorithm == "diloco":
        return optimizer.round * ring_bytes(model, 4 if arguments.wire else 8, ranks)
    return int(optimizer.stats()["bytes_sent"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=sorted(GOSSIP_EVERY), default="sgp", help="(default sgp)")
    parser.add_argument(
        "--gossip-every", type=int, metavar="H", help="steps per exchange (default 1; noloco, diloco: 50)"
    )
    parser.add_argument(
        "--wire", metavar="DTYPE", help="send in this type, such as bfloat16 (default: float32 as it is)"
    )
    parser.add_argument("--staleness", default="0", help="of sgp: 0, 1, 2, ... or unbounded (default 0)")
    parser.add_argument("--graph", help="as `pushsum graphs` takes it, such as Ring (default: the library's own)")
    parser.add_argument("--outer-lr", type=float, default=1.0, help="of noloco and diloco (default 1)")
    parser.add_argument("--outer-momentum", type=float, default=0.5, help="of noloco and diloco (default 0.5)")
    parser.add_argument("--text", type=Path, metavar="PATH", help="a file or a folder (default: Python's own source)")
    parser.add_argument("--steps", type=int, default=1000, help="(default 1000)")
    parser.add_argument("--batch", type=int, default=8, help="pieces per rank and step (default 8)")
    parser.add_argument("--length", type=int, default=64, help="bytes of a piece (default 64)")
    parser.add_argument("--width", type=int, default=64, help="(default 64)")
    parser.add_argument("--layers", type=int, default=2, help="(default 2)")
    parser.add_argument("--heads", type=int, default=4, help="(default 4)")
    parser.add_argument("--lr", type=float, default=4e-3, help="of AdamW (default 4e-3)")
    parser.add_argument("--warm-up", type=int, default=50, help="steps (default 50)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate-every", type=int, default=200, metavar="STEPS", help="(default 200)")
    parser.add_argument("--validate-on", type=int, default=1024, metavar="N", help="pieces (default 1024)")
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="save there, and go on from what is there")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS", help="(default 200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the lines to a file instead of printing them")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    ddp = arguments.algorithm == "ddp"
    device = ps.local_device()  # this rank's GPU; the CPU where there is none
    train, held_out = read(arguments.text)
    torch.manual_seed(arguments.seed)
    model = GPT(arguments.width, arguments.layers, arguments.heads, arguments.length).to(device)
    optimizer = adamw(model, arguments.lr)
    forward = start_ddp(model) if ddp else model
    optimizer = optimizer if ddp else wrap(arguments, model, optimizer)
    averaged: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext if ddp else optimizer.averaged
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_and_decay(arguments.steps, arguments.warm_up))
    saver, begin = None, {"step": 0, "sent": 0}
    if arguments.checkpoints and not ddp:
        rounds = max(1, arguments.save_every // every_of(arguments))  # a Saver counts rounds
        saver = ps.checkpoint.Saver(arguments.checkpoints, optimizer, every=rounds, scheduler=schedule)
        begin = saver.resume() or begin
    already = begin["sent"] if arguments.algorithm != "diloco" else 0  # its rounds are counted through

    with tqdm(range(begin["step"], arguments.steps), unit="step", disable=ps.rank() != 0) as steps:
        for step in steps:
            inputs, targets = batch(train, (arguments.seed, ps.rank(), step), arguments.batch, arguments.length, device)
            optimizer.zero_grad()
            loss_of(forward, inputs, targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done = step + 1
            sent = already + bytes_sent(arguments, model, optimizer, done, ps.size())
            if saver is not None:
                saver.after_step(step=done, sent=sent)
            if done % arguments.validate_every == 0 or done == arguments.steps:
                with averaged():
                    loss = validate(model, held_out, arguments.validate_on, arguments.length, device)
                report(arguments, {"step": done, "loss": round(loss, 5), "bytes_sent": sent})
    if ddp:
        torch.distributed.destroy_process_group()
    else:
        optimizer.close()


def report(arguments: argparse.Namespace, values: dict[str, float]) -> None:
    line = json.dumps({**values, "algorithm": arguments.algorithm, "seed": arguments.seed, "ranks": ps.size()})
    if ps.rank() == 0 and arguments.json:
        with arguments.json.open("a") as file:
            print(line, file=file)
    elif ps.rank() == 0:
        tqdm.write(line, file=sys.stdout)


if __name__ == "__main__":
    main()
