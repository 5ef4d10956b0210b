"""The loop of docs/slurm.md: stopped anywhere and resumed, it has the bits of a run that was never stopped."""

from __future__ import annotations

import os
import random
import re
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset
from warm.python import warm_python

import pushsum_opt as ps
from pushsum_opt.checkpoint.batches import Places

ROOT = Path(__file__).resolve().parents[2]
TESTS = str(ROOT / "tests")
PAGE = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")


def noisy(index):
    draws = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
    return torch.tensor([index, *draws], dtype=torch.float64)


class Noisy(Dataset):
    """Augments by all generators there are, and notes in the main process what was read."""

    def __init__(self, size=24):
        self.size = size
        self.read = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.read.append(index)
        return noisy(index)


class Stream(IterableDataset):
    def __iter__(self):
        for index in range(24):
            yield noisy(index)


def mixing_collate(samples):
    return torch.stack(samples) + torch.rand(())


LOADERS = {
    "shuffled": lambda: DataLoader(Noisy(), 4, shuffle=True),
    "a generator of its own": lambda: DataLoader(Noisy(), 4, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "without batches": lambda: DataLoader(Noisy(), None, shuffle=True),
    "collate_fn draws": lambda: DataLoader(Noisy(), 4, shuffle=True, collate_fn=mixing_collate),
    "weighted": lambda: DataLoader(Noisy(), 4, sampler=torch.utils.data.WeightedRandomSampler([1.0] * 24, 24)),
    "workers": lambda: DataLoader(Noisy(), 4, shuffle=True, num_workers=2, collate_fn=mixing_collate),
    "persistent workers": lambda: DataLoader(Noisy(), 4, shuffle=True, num_workers=1, persistent_workers=True),
    "workers without batches": lambda: DataLoader(Noisy(), None, shuffle=True, num_workers=1),
    "a stream": lambda: DataLoader(Stream(), 4),
    "a list": lambda: [torch.full((2,), float(i), dtype=torch.float64) for i in range(6)],
}


def seed_all():
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)


def train(loader, places, epochs, begin=0, stop=None):
    """Return the batches and what a step draws beside them; stop after ``stop`` steps, with the state to save."""
    seen = []
    for epoch in range(begin, epochs):
        for batch in places.batches(loader):
            seen.append([batch.sum().item(), *noisy(0).tolist()])
            if len(seen) == stop:
                return seen, epoch, places.state(), ps.checkpoint.randomness.state()
    return seen


def goes_on_with_the_same_draws(name):
    seed_all()
    whole = train(LOADERS[name](), Places(), 3)
    per_epoch = len(whole) // 3
    for stop in (2, per_epoch, per_epoch + 3):
        seed_all()
        before, epoch, state, generators = train(LOADERS[name](), Places(), 3, stop=stop)
        random.seed(99)
        torch.manual_seed(99)
        loader, places = LOADERS[name](), Places()
        torch.rand(7)
        ps.checkpoint.randomness.restore(generators)
        places.resume(state, exact=True, ratio=1.0)
        assert before + train(loader, places, 3, begin=epoch) == whole, stop


@pytest.mark.parametrize("name", [name for name in LOADERS if "workers" not in name])
def test_batches_go_on_with_the_same_draws_from(name):
    goes_on_with_the_same_draws(name)


@pytest.mark.parametrize("name", [name for name in LOADERS if "workers" in name])
def test_batches_go_on_with_the_same_draws_from_a_loader_with(name):
    """In a program of its own, because its workers are forks: one of a process with other threads may hang."""
    code = f"from checkpoint.test_batches import goes_on_with_the_same_draws as check; check({name!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([*warm_python(), "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_was_seen_is_not_read_again_and_the_length_is_what_is_left():
    loader, places = LOADERS["shuffled"](), Places()
    _, _, state, _ = train(loader, places, 1, stop=4)
    loader.dataset.read.clear()
    places = Places()
    places.resume(state, exact=True, ratio=1.0)
    rest = places.batches(loader)
    assert len(rest) == 2
    assert len(list(rest)) == 2
    assert len(loader.dataset.read) == 8


def test_on_another_number_of_ranks_as_many_samples_are_left_out():
    loader, places = LOADERS["a list"](), Places()
    _, _, state, _ = train(loader, places, 1, stop=3)
    places = Places()
    places.resume(state, exact=False, ratio=2 / 4)
    assert len(list(places.batches(loader))) == 5


def test_two_loops_side_by_side_keep_their_places():
    first, second = LOADERS["a list"](), LOADERS["a list"]()[::-1]
    places = Places()
    for count, _ in enumerate(zip(places.batches(first), places.batches(second), strict=True), 1):
        if count == 2:
            state = places.state()
            break
    places = Places()
    places.resume(state, exact=True, ratio=1.0)
    rest = [(a[0].item(), b[0].item()) for a, b in zip(places.batches(first), places.batches(second), strict=True)]
    assert rest == [(2, 3), (3, 2), (4, 1), (5, 0)]


# ---------------------------------------------------------------------- the page's own loop


def the_loop() -> str:
    """Return the page's loop with a Dropout, augmentation and shuffling put in, and a stop where it is asked for."""
    loop = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "Saver(" in block)
    changes = {
        "torch.nn.Linear(10, 1)": "torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.Dropout(0.5), "
        "torch.nn.Linear(8, 1))",
        "torch.utils.data.TensorDataset(": "Augmented(",
        "batch_size=8, sampler=sampler": "batch_size=8, sampler=sampler, **OPTIONS",
        "every=500": "every=500, check_every=1",
        "            saver.after_step(epoch=epoch)": "            if optimizer.round == STOP: saver.request_stop()\n"
        "            saver.after_step(epoch=epoch)",
        "optimizer.close()": "print(sum(p.double().sum().item() for p in model.parameters()).hex(), optimizer.round)\n"
        "optimizer.close()",
    }
    for old, new in changes.items():
        assert loop.count(old) == 1, old
        loop = loop.replace(old, new)
    return loop


BEFORE = """
import random, sys
import numpy as np, torch
STOP = int(sys.argv[1])
OPTIONS = eval(sys.argv[2])
random.seed(5); np.random.seed(6); torch.manual_seed(7)

class Augmented(torch.utils.data.TensorDataset):
    def __getitem__(self, index):
        inputs, targets = super().__getitem__(index)
        return inputs + torch.randn(()) + random.random(), targets + np.random.rand()

if __name__ == "__main__":
"""


@pytest.mark.parametrize("options", ["{}", "dict(num_workers=1, persistent_workers=True)"])
def test_the_pages_loop_has_the_same_bits_when_it_is_stopped_and_resumed(tmp_path, options):
    program = tmp_path / "loop.py"
    program.write_text(BEFORE + textwrap.indent(the_loop(), "    "))

    def run(folder, stop):
        folder.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*warm_python(), str(program), str(stop), options],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    whole = run(tmp_path / "whole", -1)
    assert whole.returncode == 0, whole.stderr
    stopped = run(tmp_path / "parts", 11)
    assert stopped.returncode == ps.checkpoint.REQUEUE, stopped.stderr
    rest = run(tmp_path / "parts", -1)
    assert (rest.returncode, rest.stdout) == (0, whole.stdout), rest.stderr
    assert whole.stdout.endswith(" 24\n")
    assert "resumed exactly" in rest.stderr
