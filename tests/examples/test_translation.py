"""The recipe learns to translate real sentences, counts each once, and goes on where a checkpoint was made."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.ports import free_ports
from warm.python import warm_python

import pushsum_opt as ps

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "translation.py"
SMALL = [
    "--model", "tiny", "--vocabulary", "600", "--tokens", "400", "--tokens-per-step", "800", "--warm-up", "15", "--lr",
    "0.3", "--beam", "2", "--longest", "60", "--sentences", "64",
]  # fmt: skip


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("translation", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def messages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("messages")
    program = [sys.executable, str(ROOT / "examples" / "message_catalogues.py"), str(folder)]
    done = subprocess.run([*program, "django", "plone.app.locales"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return folder


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_catalogues_give_pairs_of_sentences_and_none_twice(messages):
    train, valid = (
        [*zip(lines(messages / f"{n}.en"), lines(messages / f"{n}.de"), strict=True)] for n in ("train", "valid")
    )
    assert len(train) > 2000
    assert len(valid) == math.ceil((len(train) + len(valid)) / 20)
    english = [one for one, _ in train + valid]
    assert len(set(english)) == len(english)
    assert all(one.strip() and other.strip() for one, other in train + valid)
    assert ("January", "Januar") in train + valid


def train(result: Path, messages: Path, *options: str, ranks: int = 2) -> list[dict]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "MASTER_PORT": str(free_ports())}
    words = [*warm_python(), str(EXAMPLE), str(messages / "train"), str(messages / "valid"), *SMALL]
    words += ["--json", str(result), *options]
    command = [sys.executable, "-m", "pushsum_opt", "run", "-np", str(ranks), *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return [json.loads(line) for line in result.read_text().splitlines()]


def without_time(line: dict) -> dict:
    return {name: value for name, value in line.items() if name != "seconds"}


@pytest.mark.slow
@pytest.mark.mpi
def test_two_ranks_learn_and_a_run_that_was_stopped_goes_on_with_the_same_figures(messages, tmp_path):
    options = ["--staleness", "1", "--adaptive", "corrected", "--average-every", "4", "--validate-every", "20"]
    saved = ["--checkpoints", str(tmp_path / "saved"), "--save-every", "20"]
    first = train(tmp_path / "first.json", messages, *options, *saved, "--steps", "20")
    resumed = train(tmp_path / "resumed.json", messages, *options, *saved, "--steps", "40")
    whole = train(tmp_path / "whole.json", messages, *options, "--checkpoints", str(tmp_path / "other"), "--save-every",
                  "20", "--steps", "40")  # fmt: skip
    assert [without_time(line) for line in first + resumed] == [without_time(line) for line in whole]
    sentences = len(lines(messages / "valid.en"))
    assert [line["evaluated"] for line in whole] == [sentences, sentences]
    assert whole[1]["loss"] < whole[0]["loss"] < math.log(600)
    assert whole[1]["bleu"] >= 0.0


@pytest.mark.slow
@pytest.mark.mpi
def test_ddp_and_synchronous_gossip_with_two_ranks_end_alike(messages, tmp_path):
    options = ["--steps", "30", "--validate-every", "30", "--beam", "0"]
    (ddp,) = train(tmp_path / "ddp.json", messages, *options, "--baseline", "ddp")
    (gossip,) = train(tmp_path / "gossip.json", messages, *options)
    assert ddp["mode"] == "ddp"
    assert "bleu" not in ddp
    assert gossip["loss"] == pytest.approx(ddp["loss"], rel=0.05)


def test_batches_hold_every_pair_once_and_no_more_tokens_than_allowed(example):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(2, 40, (500, 2), generator=generator).tolist()
    data = [([1] * a, [1] * b) for a, b in sizes]
    batches = example.buckets(data, 100)
    assert sorted(itertools.chain(*batches)) == list(range(500))
    filled = [len(batch) * max(max(map(len, data[k])) for k in batch) for batch in batches]
    assert max(filled) <= 100
    assert sum(filled) < 1.1 * sum(max(pair) for pair in sizes)  # hardly any padding


def test_a_sentence_longer_than_a_batch_is_a_batch_of_its_own(example):
    data = [([1] * 3, [1] * 3), ([1] * 300, [1] * 5)]
    assert example.buckets(data, 100) == [[0], [1]]


def test_ranks_take_different_batches_and_the_same_ones_after_a_stop(example, monkeypatch):
    monkeypatch.setattr(ps, "size", lambda: 3)
    taken = []
    for rank in range(3):
        monkeypatch.setattr(ps, "rank", lambda rank=rank: rank)
        whole = [*itertools.islice(example.shares(20, 7, 2, 0), 9)]
        assert [*itertools.islice(example.shares(20, 7, 2, 4), 5)] == whole[4:]
        taken.append(whole)
    for epoch in (0, 3, 6):  # 3 steps of 3 ranks with 2 batches each: 18 of the 20
        seen = [batch for rank in taken for step in rank[epoch : epoch + 3] for batch in step]
        assert len(seen) == len(set(seen)) == 18
    assert taken[0][:3] != taken[0][3:6]


@pytest.mark.parametrize("seed", [7, 27, 29])  # with best translations of one to three words
def test_a_beam_that_keeps_everything_finds_the_best_of_all_translations(example, seed):
    torch.manual_seed(seed)
    model = example.Transformer(7, 16, 32, 2, 1, 0.0).eval()
    with torch.no_grad():
        model.words.weight *= 3  # words differ much in how likely they are
    source = torch.tensor([[4, 5, example.END], [6, example.END, example.PAD]])
    longest = 4

    def score(sentence: torch.Tensor, words: tuple[int, ...]) -> float:
        target = torch.tensor([[*words, example.END]])
        alone = sentence[sentence != example.PAD][None]
        with torch.no_grad():
            total = -example.loss_sum(model, alone, target, 0.0).item()
        return total / ((5 + len(words) + 1) / 6) ** 0.6

    words = [example.UNKNOWN, 4, 5, 6]
    every = [one for length in range(longest) for one in itertools.product(words, repeat=length)]
    found = example.beam_search(model, source, 2000, 0.6, longest=longest)
    for sentence, mine in zip(source, found, strict=True):
        best = max(every, key=lambda one: score(sentence, one))
        assert len(best) > 0
        assert mine == list(best)


def test_a_greedy_search_takes_the_likeliest_word_each_time(example):
    torch.manual_seed(2)
    model = example.Transformer(9, 16, 32, 2, 1, 0.0).eval()
    source = torch.tensor([[4, 5, 6, example.END]])
    words = [example.BEGIN]
    with torch.no_grad():
        for _ in range(6):
            scores = model(source, torch.tensor([words]))[0, -1]
            scores[[example.PAD, example.BEGIN]] = -math.inf
            words.append(int(scores.argmax()))
            if words[-1] == example.END:
                break
    expected = [word for word in words[1:] if word != example.END]
    assert example.beam_search(model, source, 1, 0.6, longest=6)[0][: len(expected)] == expected
