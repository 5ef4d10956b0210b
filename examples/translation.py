"""Train a Transformer to translate, from two plain text files, and print validation loss and BLEU: push-sum or DDP.

    pushsum run -np 8 examples/translation.py wmt/train wmt/valid --staleness 1 --adaptive corrected --average-every 4
    pushsum run -np 8 examples/translation.py wmt/train wmt/valid --model big --tokens-per-step 400000 --lr 2
    pushsum run -np 8 examples/translation.py wmt/train wmt/valid --baseline ddp
    srun --mpi=pmix python examples/translation.py wmt/train wmt/valid --checkpoints out
    pushsum run -np 2 examples/translation.py mine/train mine/valid --model small --vocabulary 4000 --steps 2000

TRAIN and VALID stand for two files each, a sentence per line: TRAIN.en and TRAIN.de (--from, --to). Rank 0 makes a
byte-pair encoding of both languages and leaves it in TRAIN.bpe.json. Now and then it prints a line of JSON: loss and
BLEU of the average of all ranks, each sentence counted once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import pushsum_opt as ps
from pushsum_opt.cli.graph_names import named_graph

PAD, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
# Vaswani et al. 2017, table 3: width, inner width, heads, layers of encoder and decoder each, dropout.
MODELS = {
    "base": (512, 2048, 8, 6, 0.1),
    "big": (1024, 4096, 16, 6, 0.3),
    "small": (256, 1024, 4, 3, 0.1),
    "tiny": (64, 128, 4, 2, 0.1),
}
Pair = tuple[list[int], list[int]]


def leave(message: str) -> None:
    sys.exit(f"rank {ps.rank()}: {message}")


# ---------------------------------------------------------------------- text


def read(stem: str, arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the lines of STEM.en and STEM.de."""
    sides = []
    for language in (arguments.source, arguments.target):
        path = Path(f"{stem}.{language}")
        if not path.is_file():
            leave(f"there is no {path}: name two files, {stem}.{arguments.source} and {stem}.{arguments.target}")
        sides.append(path.read_text(encoding="utf-8").splitlines())
    if len(sides[0]) != len(sides[1]):
        leave(f"{stem}: {len(sides[0])} lines of {arguments.source}, {len(sides[1])} of {arguments.target}")
    return sides[0], sides[1]


def encoding(stem: str, texts: Sequence[list[str]], size: int) -> Any:
    """Collective. Return one byte-pair encoding of both languages (Sennrich et al. 2016): rank 0 makes or reads it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    path, made = Path(f"{stem}.bpe.json"), None
    if ps.rank() == 0 and path.exists():
        made = path.read_text(encoding="utf-8")
    elif ps.rank() == 0:
        tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, show_progress=False)
        tokenizer.train_from_iterator((line for text in texts for line in text), trainer)
        made = tokenizer.to_str()
        path.write_text(made, encoding="utf-8")
    return Tokenizer.from_str(ps.broadcast_object(made))


def pairs(tokenizer: Any, texts: tuple[list[str], list[str]], longest: int | None = None) -> list[Pair]:
    """Return sentences and their translations as numbers, each with an end; none empty or longer than ``longest``."""
    sides = [[[*one.ids, END] for one in tokenizer.encode_batch(text)] for text in texts]
    return [
        (source, target)
        for source, target in zip(*sides, strict=True)
        if longest is None or (len(source) > 1 and len(target) > 1 and max(len(source), len(target)) <= longest)
    ]


def buckets(data: list[Pair], tokens: int) -> list[list[int]]:
    """Put sentences of about one length into batches of at most so many tokens on either side, padding counted."""
    order = sorted(range(len(data)), key=lambda k: (max(map(len, data[k])), len(data[k][0]), k))
    found: list[list[int]] = [[]]
    for k in order:  # from short to long: the last one of a batch is its longest
        if found[-1] and (len(found[-1]) + 1) * max(map(len, data[k])) > tokens:
            found.append([])
        found[-1].append(k)
    return found


def shares(count: int, seed: int, each: int, begin: int) -> Iterator[list[int]]:
    """Yield which batches this rank takes in each step from ``begin`` on: all in a new order in every epoch.

    The same for the same seed and step, however often a run was stopped and resumed. Ranks take turns, and batches that
    are left over at the end of an epoch are left out: all ranks take the same number of steps.

    Args:
        count: batches that there are.
        each: batches of a step and rank.
    """
    together = each * ps.size()
    steps = count // together
    for epoch in range(begin // steps, sys.maxsize):
        order = np.random.default_rng((seed, epoch)).permutation(count).tolist()
        for step in range(begin % steps if epoch == begin // steps else 0, steps):
            mine = step * together + ps.rank()
            yield order[mine : (step + 1) * together : ps.size()]


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return sentences as int64[sentences, longest], filled up with PAD."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *([PAD] * (longest - len(row)))] for row in rows], device=device)


# ---------------------------------------------------------------------- model


class Transformer(nn.Module):
    """The model of Vaswani et al. 2017: one matrix reads both languages in and tells words apart at the end."""

    def __init__(self, vocabulary: int, width: int, inner: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.width, self.words, self.dropout = width, nn.Embedding(vocabulary, width), nn.Dropout(dropout)
        options = {"batch_first": True}
        encoder = nn.TransformerEncoderLayer(width, heads, inner, dropout, **options)
        decoder = nn.TransformerDecoderLayer(width, heads, inner, dropout, **options)
        self.encoder = nn.TransformerEncoder(encoder, layers, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, layers)
        for name, parameter in self.named_parameters():
            if name == "words.weight":
                nn.init.normal_(parameter, std=width**-0.5)
            elif parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def read_in(self, tokens: Tensor) -> Tensor:
        """Words and their places, as sines and cosines of wave lengths from 2 pi to 20,000 pi (section 3.5)."""
        rates = torch.exp(torch.arange(0, self.width, 2, device=tokens.device) * (-math.log(10_000) / self.width))
        angles = torch.arange(tokens.shape[1], device=tokens.device)[:, None] * rates
        places = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
        return self.dropout(self.words(tokens) * math.sqrt(self.width) + places)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the decoder looks at, and where there is nothing to look at."""
        nothing = source == PAD
        return self.encoder(self.read_in(source), src_key_padding_mask=nothing), nothing

    def decode(self, target: Tensor, memory: Tensor, nothing: Tensor) -> Tensor:
        """Return scores of the word after each place of a target that begins with BEGIN."""
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=target.device).triu(1)
        y = self.decoder(self.read_in(target), memory, tgt_mask=later, memory_key_padding_mask=nothing)
        return y @ self.words.weight.T

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.decode(target, *self.encode(source))


def loss_sum(model: nn.Module, source: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Return the cross entropy, in nats, summed over the words of the targets."""
    shifted = torch.cat([torch.full_like(target[:, :1], BEGIN), target[:, :-1]], 1)
    scores = model(source, shifted).flatten(0, 1).float()
    return cross_entropy(scores, target.flatten(), ignore_index=PAD, label_smoothing=smoothing, reduction="sum")


@torch.no_grad()
def beam_search(
    model: Transformer, source: Tensor, beam: int, length_penalty: float, longest: int | None = None
) -> list[list[int]]:
    """Return the best translation found of each sentence, without its end.

    The ``beam`` best beginnings of each are kept; in the end the best is chosen by its log probability over
    ((5 + length) / 6) ** length_penalty (Wu et al. 2016, equation 14, without coverage), finished ones first.

    Args:
        longest: words, the end counted (50 more than the longest of these sentences).
    """
    count, longest = len(source), longest or source.shape[1] + 50
    memory, nothing = (value.repeat_interleave(beam, 0) for value in model.encode(source))
    words = torch.full((count * beam, 1), BEGIN, device=source.device)
    scores = torch.full((count, beam), -math.inf, device=source.device)
    scores[:, 0] = 0.0  # all beams begin alike: one of them is enough
    done = torch.zeros(count, beam, dtype=torch.bool, device=source.device)
    lengths = torch.zeros(count, beam, device=source.device)
    first = torch.arange(count, device=source.device)[:, None] * beam
    while words.shape[1] <= longest and not done.all():
        following = model.decode(words, memory, nothing)[:, -1].float().log_softmax(1).view(count, beam, -1)
        following[..., [PAD, BEGIN]] = -math.inf
        following[done] = -math.inf
        following[..., PAD][done] = 0.0  # what is finished stays as it is
        scores, best = (scores[..., None] + following).flatten(1).topk(beam, 1)
        before, word = best // following.shape[2], best % following.shape[2]
        words = torch.cat([words[(first + before).flatten()], word.view(-1, 1)], 1)
        done, lengths = done.gather(1, before), lengths.gather(1, before)
        lengths += ~done
        done = done | (word == END)
    final = scores / ((5 + lengths) / 6) ** length_penalty
    chosen = torch.where(done | ~done.any(1, keepdim=True), final, -math.inf).argmax(1)
    rows = words.view(count, beam, -1)[torch.arange(count, device=source.device), chosen].tolist()
    return [[word for word in row if word not in (PAD, BEGIN, END)] for row in rows]


# ---------------------------------------------------------------------- training together


def inverse_square_root(width: int, warm_up: int) -> Callable[[int], float]:
    """Return the learning rate of each step, up along a line and down with the root of the step (equation 3)."""
    return lambda step: width**-0.5 * min((step + 1) ** -0.5, (step + 1) * warm_up**-1.5)


def start_ddp(model: nn.Module) -> nn.Module:
    name = "127.0.0.1" if ps.local_size() == ps.size() else ps.broadcast_object(socket.gethostname())
    os.environ.setdefault("MASTER_ADDR", name)
    os.environ.setdefault("MASTER_PORT", "29500")
    backend = "nccl" if next(model.parameters()).is_cuda else "gloo"
    torch.distributed.init_process_group(backend, rank=ps.rank(), world_size=ps.size())
    return nn.parallel.DistributedDataParallel(model)


def wrap(arguments: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer) -> ps.PushSumOptimizer:
    """Return the optimizer that gossips as the arguments say."""
    algorithm = ps.algorithms.PeriodicAverage(every=arguments.average_every) if arguments.average_every else None
    return ps.PushSumOptimizer(
        optimizer,
        model,
        graph=named_graph(arguments.graph) if arguments.graph else None,
        staleness=arguments.staleness if arguments.staleness == "unbounded" else int(arguments.staleness),
        algorithm=algorithm,
        adaptive=arguments.adaptive,
        within_host=arguments.within_host,
        wire_dtype=arguments.wire,
    )


class Run:
    """What training and evaluation need to know."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        self.arguments, self.device = arguments, device
        self.dtype = getattr(torch, arguments.autocast) if arguments.autocast else None
        self.train_texts, self.valid_texts = read(arguments.train, arguments), read(arguments.valid, arguments)
        self.tokenizer = encoding(arguments.train, self.train_texts, arguments.vocabulary)
        self.train = pairs(self.tokenizer, self.train_texts, arguments.longest)
        self.valid = pairs(self.tokenizer, self.valid_texts)
        self.batches = buckets(self.train, arguments.tokens)
        # As many backward passes as make the tokens of a step, over all ranks.
        self.passes = max(1, round(arguments.tokens_per_step / (arguments.tokens * ps.size())))
        if len(self.batches) < self.passes * ps.size():
            leave(
                f"{len(self.batches)} batches are too few for one step of {ps.size()} ranks with {self.passes} "
                "backward passes each: choose smaller --tokens or --tokens-per-step"
            )

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, model: nn.Module, quiet: Callable[[], AbstractContextManager[Any]], mine: list[int]) -> float:
        """Sum up the gradients of some batches, and return the loss per word. Only the last one is communicated."""
        groups = [[self.train[k] for k in self.batches[batch]] for batch in mine]
        words = sum(len(target) for group in groups for _, target in group)
        total = 0.0
        for index, group in enumerate(groups):
            source, target = (padded(side, self.device) for side in zip(*group, strict=True))
            with quiet() if index + 1 < len(groups) else contextlib.nullcontext():
                with self.autocast():
                    loss = loss_sum(model, source, target, self.arguments.label_smoothing) / words
                loss.backward()
            total += loss.item()
        return total

    @torch.no_grad()
    def evaluate(self, model: Transformer) -> dict[str, float]:
        """Collective. Return loss per word and BLEU on all of VALID; each sentence is taken by one rank."""
        import sacrebleu

        arguments = self.arguments
        model.eval()
        mine = sorted(range(ps.rank(), len(self.valid), ps.size()), key=lambda k: len(self.valid[k][0]))
        total, words, said = 0.0, 0, []
        for start in range(0, len(mine), arguments.sentences):
            some = mine[start : start + arguments.sentences]
            source, target = (padded(side, self.device) for side in zip(*(self.valid[k] for k in some), strict=True))
            with self.autocast():
                total += loss_sum(model, source, target, 0.0).item()
                found = beam_search(model, source, arguments.beam, arguments.length_penalty) if arguments.beam else []
            words += int((target != PAD).sum())
            said += zip(some, self.tokenizer.decode_batch(found), strict=False)
        model.train()
        values = {"loss": round(ps.sum(total) / ps.sum(words), 5), "evaluated": ps.sum(len(mine))}
        if arguments.beam:
            everyone = sorted(pair for one in ps.allgather(said) for pair in one)
            bleu = sacrebleu.corpus_bleu([text for _, text in everyone], [self.valid_texts[1]])
            values["bleu"] = round(bleu.score, 3)
        return values


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", metavar="TRAIN", help="two files to train on, without their endings")
    parser.add_argument("valid", metavar="VALID", help="two files to evaluate on, without their endings")
    parser.add_argument("--from", dest="source", default="en", metavar="LANGUAGE", help="(default en)")
    parser.add_argument("--to", dest="target", default="de", metavar="LANGUAGE", help="(default de)")
    parser.add_argument("--vocabulary", type=int, default=37000, help="pieces of words in all (default 37000)")
    parser.add_argument("--longest", type=int, default=256, help="leave out longer sentences (default 256 tokens)")
    group = parser.add_argument_group("training")
    group.add_argument("--model", choices=MODELS, default="base", help="(default base)")
    group.add_argument("--steps", type=int, default=100_000, help="(default 100000)")
    group.add_argument("--tokens", type=int, default=3125, help="per rank and backward pass (default 3125)")
    group.add_argument("--tokens-per-step", type=int, default=25_000, metavar="N", help="of all ranks (default 25000)")
    group.add_argument("--lr", type=float, default=1.0, help="factor of the paper's learning rate (default 1)")
    group.add_argument("--warm-up", type=int, default=4000, help="steps (default 4000)")
    group.add_argument("--label-smoothing", type=float, default=0.1, help="(default 0.1)")
    group.add_argument("--autocast", choices=["bfloat16"], help="compute in this type")
    group.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("together")
    group.add_argument("--staleness", default="0", help="0, 1, 2, ... or unbounded (default 0)")
    group.add_argument("--graph", help="as `pushsum graphs` takes it, such as Ring (default: the library's own)")
    group.add_argument("--adaptive", choices=["corrected", "plain"], help="what becomes of Adam's moments")
    group.add_argument("--average-every", type=int, metavar="K", help="average exactly in every K-th round")
    group.add_argument("--wire", metavar="DTYPE", help="send in this type: bfloat16, float16 or int8")
    group.add_argument("--within-host", choices=["gradients"], help="a host is one participant")
    group.add_argument("--baseline", choices=["ddp"], help="instead of push-sum: DistributedDataParallel")
    group = parser.add_argument_group("evaluation")
    group.add_argument("--validate-every", type=int, default=2000, metavar="STEPS", help="(default 2000)")
    group.add_argument("--beam", type=int, default=4, help="beginnings kept; 0: no BLEU (default 4)")
    group.add_argument("--length-penalty", type=float, default=0.6, help="(default 0.6)")
    group.add_argument("--sentences", type=int, default=32, help="translated at a time (default 32)")
    group = parser.add_argument_group("files")
    group.add_argument("--checkpoints", type=Path, metavar="DIR", help="save there, and go on from what is there")
    group.add_argument("--save-every", type=int, default=1000, metavar="STEPS", help="(default 1000)")
    group.add_argument("--json", type=Path, metavar="FILE", help="append the lines to a file instead of printing them")
    arguments = parser.parse_args()
    if arguments.baseline and (arguments.checkpoints or arguments.adaptive or arguments.average_every):
        parser.error("--baseline ddp goes without --checkpoints, --adaptive and --average-every: these are of push-sum")
    for package in ("tokenizers", "sacrebleu"):
        if importlib.util.find_spec(package) is None:
            parser.error(f"this program needs {package}, which is not installed: `pip install {package}`")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads would compete with those of other ranks
    ddp = arguments.baseline == "ddp"
    device = ps.local_device()  # this rank's GPU; the CPU where there is none
    run = Run(arguments, device)
    torch.manual_seed(arguments.seed + ps.rank())  # dropout differs between ranks; the model will be that of rank 0
    width, *rest = MODELS[arguments.model]
    model = Transformer(run.tokenizer.get_vocab_size(), width, *rest).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr, betas=(0.9, 0.98), eps=1e-9)
    trained = start_ddp(model) if ddp else model
    optimizer = optimizer if ddp else wrap(arguments, model, optimizer)
    averaged: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext if ddp else optimizer.averaged
    quiet = trained.no_sync if ddp else optimizer.no_sync
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, inverse_square_root(width, arguments.warm_up))
    saver, begin = None, {"step": 0}
    if arguments.checkpoints:
        saver = ps.checkpoint.Saver(arguments.checkpoints, optimizer, every=arguments.save_every, scheduler=schedule)
        begin = saver.resume() or begin

    start, seconds, since = time.perf_counter(), 0.0, begin["step"]
    todo = islice(shares(len(run.batches), arguments.seed, run.passes, since), arguments.steps - since)
    bar = tqdm(todo, total=arguments.steps, initial=since, unit="step", disable=ps.rank() != 0)
    for done, mine in enumerate(bar, since + 1):
        optimizer.zero_grad()
        loss = run.backward(trained, quiet, mine)
        optimizer.step()
        schedule.step()
        if done % 50 == 0:
            bar.set_postfix(loss=f"{loss:.3f}")
        if saver is not None:
            saver.after_step(step=done)
        if done % arguments.validate_every == 0 or done == arguments.steps:
            seconds += time.perf_counter() - start
            with averaged():
                values = {"step": done, "seconds": round(seconds, 3), **run.evaluate(model)}
            report(arguments, values)
            ps.barrier()  # all ranks start the clock together
            start = time.perf_counter()
    if ddp:
        torch.distributed.destroy_process_group()
    else:
        optimizer.close()


def report(arguments: argparse.Namespace, values: dict[str, float]) -> None:
    mode = arguments.baseline or f"staleness {arguments.staleness}"
    line = json.dumps({**values, "mode": mode, "seed": arguments.seed, "ranks": ps.size()})
    if ps.rank() == 0 and arguments.json:
        with arguments.json.open("a") as file:
            print(line, file=file)
    elif ps.rank() == 0:
        tqdm.write(line, file=sys.stdout)


if __name__ == "__main__":
    main()
