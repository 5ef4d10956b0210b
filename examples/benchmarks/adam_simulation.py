"""What AdamW loses under gossip, and what mends it: all ranks of a small character model, simulated in one process.

    OMP_NUM_THREADS=1 python examples/benchmarks/adam_simulation.py ddp sgp blend
    OMP_NUM_THREADS=1 python examples/benchmarks/adam_simulation.py blend pull=0.5,m=gossip,v=blend --rates 4e-3,8e-3

A run of 400 steps on 8 ranks takes about 7 s on one core and is deterministic. It needs torch alone: no MPI, and not
pushsum_opt. Every row is the validation loss of the average model. A variant is a name of NAMES or a list of
``key=value``; the keys are the fields of Rule. docs/adaptive.md explains the rules and lists what they gave.

The model: 2 layers of width 48, 4 heads, 32 characters of context, the source of the Python standard library. Rank i
takes 4 sequences a step. Rates warm up over 40 steps and fall to a tenth by a cosine; weight decay 0.1 on matrices;
gradients are clipped to norm 1. All ranks are the first dimension of each tensor, so one batched product serves all.
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

VOCABULARY = 96
CONTEXT = 32
WIDTH = 48
HEADS = 4
LAYERS = 2
BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8
WEIGHT_DECAY = 0.1
CLIP = 1.0
WARM_UP_STEPS = 40


@dataclass(frozen=True)
class Rule:
    """What a variant does. m and v are Adam's first and second moment, z the parameters, g a rank's gradient."""

    optimizer: str = "adam"  # or "sgd": momentum 0.9, where there should be no gap
    g: str = "local"  # "mean": averaged exactly before the step, which is all-reduce
    z: str = "gossip"  # "exact": averaged exactly in every round
    m: str = "local"  # "gossip": travels with z; "exact"
    v: str = "local"  # "blend", "elementwise", "factor", or "mean": of the mean gradient, which no rank knows
    travel_v: bool = False  # v travels too
    theta: float = -1.0  # of "blend"; -1: 1 / n
    bound: float = 0.0  # of each number of the update |m| / sqrt(v) in use; 0: none
    floor: bool = False  # "blend": v is raised to m^2 where it is below, and stays so
    pull: float = 0.0  # eta: what gossip moves z by also changes m
    rounds: int = 1  # of gossip a step
    graph: str = "one"  # one-peer exponential; "two" of its peers a round; "static": all of them
    delay: int = 0  # staleness in rounds
    mass: bool = False  # with a delay: m is push-summed as z is, and decays while it is in flight
    m_bits: int = 32  # of m on the wire; 16: bfloat16; 8: integers with one scale per 64 numbers
    late: bool = False  # a step uses m without its own fresh gradient
    clip: str = "own"  # by the norm of a rank's gradient; "mean": of the mean gradient; "none"
    slow: int = 0  # every so many rounds an exact average and a step of slow momentum 0.5 (SlowMo)
    early: bool = False  # messages of the last round are merged before the step
    factor: float = 1.0  # of the learning rate


NAMES = {
    "ddp": "g=mean",
    "sgp": "",
    "sgp-exact": "z=exact",
    "blend-local": "v=blend,theta=0.076",
    "blend": "m=gossip,v=blend",
    "blend-pull": "v=blend,theta=0.1,pull=0.5",
    "blend-late1": "m=gossip,v=blend,delay=1,mass=1",
    "sgp-late1": "delay=1",
    "blend-early": "m=gossip,v=blend,early=1",
    "sgp-early": "early=1",
}


def parse(variant: str) -> Rule:
    """Return the rule that a name or a list of key=value stands for."""
    types = {field.name: type(field.default) for field in fields(Rule)}
    pairs = [part.split("=") for part in NAMES.get(variant, variant).split(",") if part]
    unknown = [key for key, *_ in pairs if key not in types]
    if unknown:
        raise SystemExit(f"{variant}: expected one of {', '.join(NAMES)}, or keys of {', '.join(types)}; got {unknown}")
    rule = Rule(**{key: bool(int(value)) if types[key] is bool else types[key](value) for key, value in pairs})
    if rule.early and (rule.delay or rule.pull):
        raise SystemExit(f"{variant}: early goes without delay and pull")
    return rule


# ---------------------------------------------------------------------- the text and the model


def read_text() -> tuple[Tensor, Tensor]:
    """Return the characters to train on and those to validate on, as numbers."""
    paths = sorted(Path(os.__file__).parent.glob("*.py"))
    text = "".join(path.read_text(encoding="utf8", errors="ignore") for path in paths)[:4_000_000]
    common = collections.Counter(text).most_common(VOCABULARY - 1)
    number = {character: index for index, (character, _) in enumerate(common)}
    data = torch.tensor([number.get(character, VOCABULARY - 1) for character in text])
    cut = int(len(data) * 0.9)
    return data[:cut], data[cut:]


def layout() -> list[tuple[str, int, int, float]]:
    """Return name, rows, columns and start of every parameter: 0 or 1, or the deviation of normal numbers."""
    found = [("embedding", VOCABULARY, WIDTH, 0.02), ("position", CONTEXT, WIDTH, 0.0)]
    for block in range(LAYERS):
        found += norm(f"{block}norm1")
        found += linear(f"{block}attention", WIDTH, 3 * WIDTH) + linear(f"{block}out", WIDTH, WIDTH)
        found += norm(f"{block}norm2")
        found += linear(f"{block}up", WIDTH, 4 * WIDTH) + linear(f"{block}down", 4 * WIDTH, WIDTH)
    return [*found, *norm("norm"), ("head", WIDTH, VOCABULARY, 0.02)]


def norm(name: str) -> list[tuple[str, int, int, float]]:
    return [(name, 1, WIDTH, 1.0), (f"{name}.bias", 1, WIDTH, 0.0)]


def linear(name: str, inputs: int, outputs: int) -> list[tuple[str, int, int, float]]:
    return [(name, inputs, outputs, 0.02), (f"{name}.bias", 1, outputs, 0.0)]


LAYOUT = layout()
SIZES = [rows * columns for _, rows, columns, _ in LAYOUT]


def start(seed: int) -> Tensor:
    """Return one rank's parameters as one vector."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for (_, _, _, value), size in zip(LAYOUT, SIZES, strict=True):
        constant = value in (0.0, 1.0)
        parts.append(torch.full((size,), value) if constant else torch.randn(size, generator=generator) * value)
    return torch.cat(parts)


def views(vectors: Tensor, gradients: Tensor | None = None) -> dict[str, Tensor]:
    """Return the parameters of all ranks as views of (ranks, numbers), whose gradients go to views of another."""
    found = {}
    offset = 0
    for (name, rows, columns, _), size in zip(LAYOUT, SIZES, strict=True):
        view = vectors[:, offset : offset + size].view(-1, rows, columns)
        if gradients is not None:
            view = view.detach().requires_grad_()
            view.grad = gradients[:, offset : offset + size].view(-1, rows, columns)
        found[name] = view
        offset += size
    return found


def loss_of(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss over ranks; x and y have the shape (ranks, sequences, context)."""
    n, sequences, context = x.shape

    def normed(h: Tensor, name: str) -> Tensor:
        return F.layer_norm(h, (WIDTH,)) * p[name] + p[f"{name}.bias"]

    def apply(h: Tensor, name: str) -> Tensor:
        return torch.baddbmm(p[f"{name}.bias"], h, p[name])

    h = torch.stack([F.embedding(x[i], p["embedding"][i]) for i in range(n)]) + p["position"].unsqueeze(1)
    h = h.reshape(n, sequences * context, WIDTH)
    for block in range(LAYERS):
        heads = apply(normed(h, f"{block}norm1"), f"{block}attention")
        q, k, v = heads.view(n * sequences, context, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        h = h + apply(attended.reshape(n, sequences * context, WIDTH), f"{block}out")
        h = h + apply(F.gelu(apply(normed(h, f"{block}norm2"), f"{block}up")), f"{block}down")
    return F.cross_entropy(torch.bmm(normed(h, "norm"), p["head"]).flatten(0, 1), y.flatten())


def batch(data: Tensor, shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    where = torch.randint(len(data) - CONTEXT - 1, shape, generator=generator).unsqueeze(-1) + torch.arange(CONTEXT)
    return data[where], data[where + 1]


# ---------------------------------------------------------------------- gossip


class Gossip:
    """Mixes what all ranks hold; n is a power of 2. With d peers, w settles at (1 + d) / (1 + d + d delay)."""

    def __init__(self, rule: Rule, n: int) -> None:
        self.rule = rule
        self.cycle = max(1, int(math.log2(n)))
        self.peers = min(self.cycle, {"one": 1, "two": 2, "static": self.cycle}[rule.graph])
        self.in_flight: dict[str, list[Tensor]] = {}
        self.step_factor = 1 + rule.delay * self.peers / (1 + self.peers)  # a / w

    def mix(self, name: str, held: Tensor, how: str, k: int) -> Tensor:
        """Return what the ranks hold after round k."""
        if how == "local":
            return held
        if how == "exact":
            return held.mean(0, keepdim=True).expand_as(held).clone()
        if self.rule.delay:
            return self._mix_late(name, held, k)
        if name == "m" and self.rule.m_bits < 32:
            return self._merge(held, rounded(held, self.rule.m_bits), k)
        for j in range(self.rule.rounds):
            held = self._merge(held, held, k * self.rule.rounds + j)
        return held

    def _mix_late(self, name: str, held: Tensor, k: int) -> Tensor:
        messages = self.in_flight.setdefault(name, [])
        messages.append(held.clone())
        if len(messages) <= self.rule.delay:
            return held
        sent = messages.pop(0)
        if name == "m" and self.rule.mass:
            sent = sent * BETA1**self.rule.delay
        return self._merge(held, sent, k - self.rule.delay)

    def _merge(self, held: Tensor, sent: Tensor, k: int) -> Tensor:
        """Merge what the in-peers sent in round k, in equal parts."""
        for j in range(self.peers):
            held = held + sent.roll(2 ** ((k * self.peers + j) % self.cycle), 0)
        return held / (1 + self.peers)


def rounded(values: Tensor, bits: int) -> Tensor:
    """Return what arrives of values that travel with so many bits each."""
    if bits == 16:
        return values.to(torch.bfloat16).to(values.dtype)
    blocks = F.pad(values, (0, -values.shape[1] % 64)).view(len(values), -1, 64)
    unit = blocks.abs().amax(2, keepdim=True).clamp(min=1e-30) / 127
    return ((blocks / unit).round() * unit).view(len(values), -1)[:, : values.shape[1]]


# ---------------------------------------------------------------------- AdamW on every rank


class Adam:
    """The state of AdamW on all ranks, each a tensor of shape (ranks, numbers)."""

    def __init__(self, rule: Rule, z: Tensor, gossip: Gossip) -> None:
        self.rule = rule
        self.z = z
        self.n = len(z)
        self.gossip = gossip
        self.theta = 1 / self.n if rule.theta < 0 else rule.theta
        self.m = torch.zeros_like(z)
        self.v = torch.zeros_like(z)
        self.products = torch.zeros(self.n, len(SIZES))
        self.squares = torch.zeros(self.n, len(SIZES))
        self.decay = torch.cat([torch.full((size,), float(LAYOUT[q][1] > 1)) for q, size in enumerate(SIZES)])
        self.slow = torch.zeros_like(z[0])
        self.before = z[0].clone()

    def step(self, g: Tensor, rate: float, k: int) -> None:
        """Take the local step of round k, then the round."""
        rule = self.rule
        if rule.early and k:
            self._round(None, rate, k - 1)
        late = self.m / max(1 - BETA1**k, EPSILON)
        fresh = self.gossip.step_factor if rule.mass and k else 1.0
        self.m.mul_(BETA1).add_(g, alpha=(1 - BETA1) * fresh)
        m = late if rule.late else self.m / (1 - BETA1 ** (k + 1))
        root = (self._second_moment(g, m, k) / (1 - BETA2 ** (k + 1))).sqrt_().add_(EPSILON)
        root = self._corrected(root, g, m, k)
        if rule.bound:
            root = torch.maximum(root, m.abs() / rule.bound)
        factor = self.gossip.step_factor if k and rule.g != "mean" else 1.0
        self.z.mul_(1 - rate * WEIGHT_DECAY * self.decay * (self.gossip.step_factor if rule.g != "mean" else 1.0))
        self.z.sub_(rate * factor * m / root)
        if rule.g != "mean" and not rule.early:
            self._round(root, rate, k)

    def _second_moment(self, g: Tensor, m: Tensor, k: int) -> Tensor:
        """Return v with this step's gradient in it."""
        if self.rule.v == "blend":  # the mean gradient's square is (1 - 1 / n) mu^2 + g^2 / n, where m stands for mu
            self.v.mul_(BETA2).addcmul_(m, m, value=(1 - BETA2) * (1 - self.theta))
            self.v.addcmul_(g, g, value=(1 - BETA2) * self.theta)
            if self.rule.floor:
                torch.maximum(self.v, m * m * (1 - BETA2 ** (k + 1)), out=self.v)
            return self.v
        seen = g.mean(0, keepdim=True).expand_as(g) if self.rule.v == "mean" else g
        return self.v.mul_(BETA2).addcmul_(seen, seen, value=1 - BETA2)

    def _corrected(self, root: Tensor, g: Tensor, m: Tensor, k: int) -> Tensor:
        if self.rule.v == "elementwise":
            v, square = root * root, m * m
            return torch.minimum(v, square + (v - square).clamp(min=0) / self.n).sqrt()
        if self.rule.v == "factor":
            peer = g.roll(2 ** (k % self.gossip.cycle), 0)  # a gradient that does not travel: the best case
            self.products.mul_(BETA2).add_(per_tensor(g * peer), alpha=1 - BETA2)
            self.squares.mul_(BETA2).add_(per_tensor(g * g), alpha=1 - BETA2)
            ratio = 1 / self.n + (1 - 1 / self.n) * self.products / self.squares.clamp(min=1e-30)
            return root * ratio.clamp(1 / self.n, 1).sqrt().repeat_interleave(torch.tensor(SIZES), dim=1)
        return root

    def _round(self, root: Tensor | None, rate: float, k: int) -> None:
        rule, gossip = self.rule, self.gossip
        mixed = gossip.mix("z", self.z, rule.z, k)
        if rule.pull and root is not None:
            bound = 2 * rate * root
            moved = ((self.z - mixed) * root).clamp_(-bound, bound)
            self.m.add_(moved, alpha=rule.pull * (1 - BETA1 ** (k + 1)) / rate)
        self.z.copy_(mixed)
        self.m = gossip.mix("m", self.m, rule.m, k)
        if rule.travel_v:
            self.v = gossip.mix("v", self.v, "exact" if rule.z == "exact" else "gossip", k)
        if rule.slow and (k + 1) % rule.slow == 0:
            self.slow.mul_(0.5).add_((self.before - self.z.mean(0)) / rate)
            self.before.sub_(rate * self.slow)
            self.z.copy_(self.before.expand_as(self.z))


class Momentum:
    """SGD with momentum 0.9 on all ranks: the harness must show no gap here."""

    def __init__(self, rule: Rule, z: Tensor, gossip: Gossip) -> None:
        self.rule, self.z, self.gossip = rule, z, gossip
        self.m = torch.zeros_like(z)

    def step(self, g: Tensor, rate: float, k: int) -> None:
        self.m.mul_(0.9).add_(g)
        if self.rule.early and k:
            self.z.copy_(self.gossip.mix("z", self.z, self.rule.z, k - 1))
        self.z.sub_(rate * self.m)
        if self.rule.g != "mean" and not self.rule.early:
            self.z.copy_(self.gossip.mix("z", self.z, self.rule.z, k))


def per_tensor(products: Tensor) -> Tensor:
    """Return the sums over every tensor of the model, of shape (ranks, tensors)."""
    return torch.stack([part.sum(1) for part in products.split(SIZES, dim=1)], 1)


# ---------------------------------------------------------------------- a run


@dataclass(frozen=True)
class Result:
    loss: float  # on the validation text, of the average model
    distance: float  # consensus distance at the end
    norms: float  # norm of a rank's gradient over that of the mean gradient, mean over the run


def simulate(
    rule: Rule, text: tuple[Tensor, Tensor], *, n: int, sequences: int, steps: int, rate: float, seed: int
) -> Result:
    """Train on n ranks and return what came of it."""
    z = start(seed).repeat(n, 1)
    gradients = torch.zeros_like(z)
    parameters = views(z, gradients)
    optimizer = (Adam if rule.optimizer == "adam" else Momentum)(rule, z, Gossip(rule, n))
    generator = torch.Generator().manual_seed(seed + 1)
    own = mean = 0.0
    for k in range(steps):
        gradients.zero_()
        (loss_of(parameters, *batch(text[0], (n, sequences), generator)) * n).backward()
        if rule.g == "mean":
            gradients.copy_(gradients.mean(0, keepdim=True).expand_as(gradients))
        norms, norm_of_mean = gradients.norm(dim=1, keepdim=True), gradients.mean(0).norm()
        own, mean = own + norms.mean().item(), mean + norm_of_mean.item()
        bound = norm_of_mean.expand(n, 1) if rule.clip == "mean" else norms
        scale = torch.ones(n, 1) if rule.clip == "none" else (CLIP / (bound + 1e-6)).clamp(max=1)
        schedule = min(1, (k + 1) / WARM_UP_STEPS) * (0.1 + 0.45 * (1 + math.cos(math.pi * k / steps)))
        optimizer.step(gradients * scale, rule.factor * rate * schedule, k)
    average = z.mean(0, keepdim=True)
    return Result(validate(average, text[1]), (z - average).square().sum(1).mean().sqrt().item(), own / mean)


@torch.no_grad()
def validate(average: Tensor, text: Tensor) -> float:
    x, y = batch(text, (1, 1024), torch.Generator().manual_seed(7))
    parameters = views(average)
    parts = zip(x.split(256, 1), y.split(256, 1), strict=True)
    return sum(loss_of(parameters, a, b).item() for a, b in parts) / 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", help=f"{', '.join(NAMES)}, or key=value,...")
    parser.add_argument("--rates", default="4e-3", help="learning rates, with commas between (default 4e-3)")
    parser.add_argument("--seeds", default="0", help="with commas between (default 0)")
    parser.add_argument("--steps", type=int, default=400, help="(default 400)")
    parser.add_argument("--ranks", type=int, default=8, help="a power of 2 (default 8)")
    parser.add_argument("--sequences", type=int, default=4, help="per rank and step (default 4)")
    arguments = parser.parse_args()
    if arguments.ranks < 2 or arguments.ranks & (arguments.ranks - 1):
        raise SystemExit(f"--ranks {arguments.ranks}: expected a power of 2, at least 2")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "grad and param do not obey")  # gradients are views of one vector
    text = read_text()
    rules = [(variant, parse(variant)) for variant in arguments.variants]
    print(f"{'variant':40} {'rate':>7} {'seed':>4} {'loss':>7} {'distance':>8} {'norms':>6} {'seconds':>7}")
    for variant, rule, rate, seed in every(rules, arguments.rates, arguments.seeds):
        begin = time.perf_counter()
        found = simulate(
            rule, text, n=arguments.ranks, sequences=arguments.sequences, steps=arguments.steps, rate=rate, seed=seed
        )
        row = f"{variant:40} {rate:7g} {seed:4} {found.loss:7.4f} {found.distance:8.3f} {found.norms:6.2f}"
        print(f"{row} {time.perf_counter() - begin:7.1f}", flush=True)


def every(rules: list[tuple[str, Rule]], rates: str, seeds: str) -> Iterator[tuple[str, Rule, float, int]]:
    for variant, rule in rules:
        for rate in rates.split(","):
            for seed in seeds.split(","):
                yield variant, rule, float(rate), int(seed)


if __name__ == "__main__":
    main()
