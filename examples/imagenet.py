"""Train ResNet-50, or another image model, on folders of JPEGs as ImageNet is laid out: push-sum in any mode, or DDP.

    pushsum run -np 8 examples/imagenet.py /data/imagenet --staleness 1 --autocast bfloat16
    pushsum run -np 8 examples/imagenet.py /data/imagenet --hybrid 2p/1p --checkpoints out
    pushsum run -np 8 examples/imagenet.py /data/imagenet --within-host gradients --staleness 1
    pushsum run -np 8 examples/imagenet.py /data/imagenet --baseline ddp
    srun --mpi=pmix python examples/imagenet.py /data/imagenet --staleness 1 --checkpoints out
    pushsum run -np 2 examples/imagenet.py my-jpegs --model resnet20 --size 32 --epochs 10 --warm-up 1

DATA holds train/CLASS/*.JPEG and val/CLASS/*.JPEG. resnet8, 20, 32, 44 and 56 are small ones for images of 32 pixels;
any other name is one of torchvision's. Rank 0 shows a bar and prints one line of JSON per epoch; what is evaluated is
the average of all ranks, each image once.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import multiprocessing
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Subset
from tqdm import tqdm

import pushsum_opt as ps
from pushsum_opt.cli.graph_names import named_graph

REFERENCE_BATCH = 256  # samples per step, over all ranks, that --lr is meant for (Goyal et al. 2017)
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet's pixels, from 0 to 255
SUFFIXES = (".jpeg", ".jpg", ".png")
SMALL = {f"resnet{6 * blocks + 2}": blocks for blocks in (1, 3, 5, 7, 9)}  # He et al. 2016, section 4.2


def leave(message: str) -> None:
    sys.exit(f"rank {ps.rank()}: {message}")


# ---------------------------------------------------------------------- images


class Folder(Dataset):
    """The images of DIR/CLASS/*.JPEG as bytes of one size, and the numbers of their classes.

    Paths are kept in one array: a worker gets a copy of it, and a million Python strings would take it seconds.
    """

    def __init__(self, root: Path, paths: np.ndarray, labels: np.ndarray, size: int, smallest: float | None) -> None:
        self.root, self.paths, self.labels, self.size, self.smallest = root, paths, labels, size, smallest

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        with Image.open(self.root / os.fsdecode(self.paths[index])) as file:
            image = file.convert("RGB")
        if self.smallest is None:
            box, flip = central_box(image.width, image.height, self.size), False
        else:
            box, flip = random_box(image.width, image.height, self.smallest), torch.rand(()).item() < 0.5
        pixels = np.array(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))
        pixels = torch.from_numpy(pixels).permute(2, 0, 1)
        return (pixels.flip(2) if flip else pixels).contiguous(), int(self.labels[index])


def central_box(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """Return the square in the middle whose sides are 224/256 of the shorter side, as for ResNet-50; all of a small
    image."""
    side = min(width, height) * (224 / 256 if size > 64 else 1.0)
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


def random_box(width: int, height: int, smallest: float) -> tuple[float, float, float, float]:
    """Draw a part of the image: of its area from ``smallest`` to 1, and 3:4 to 4:3 wide (Szegedy et al. 2015)."""
    for _ in range(10):
        area, ratio, left, top = torch.rand(4).tolist()  # torch's generator: a Saver puts it back
        area = width * height * (smallest + (1 - smallest) * area)
        ratio = math.exp((2 * ratio - 1) * math.log(4 / 3))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = left * (width - w), top * (height - h)
            return left, top, left + w, top + h
    return central_box(width, height, 0)


def find(root: Path) -> tuple[list[str], np.ndarray, np.ndarray] | str:
    """Return names of classes, paths of images below a folder, and their classes; or what is missing."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir()) if root.is_dir() else []
    found = [
        (f"{name}/{file}", label)
        for label, name in enumerate(classes)
        for file in sorted(os.listdir(root / name))
        if file.lower().endswith(SUFFIXES)
    ]
    if not found:
        return f"there are no images in {root}: expected {root / 'CLASS' / '*.JPEG'}"
    return classes, np.array([os.fsencode(path) for path, _ in found]), np.array([label for _, label in found])


def datasets(arguments: argparse.Namespace) -> tuple[Folder, Folder, int]:
    """Collective. Return what to train on, what to evaluate on, and the number of classes; rank 0 alone searches."""
    roots = arguments.data / "train", arguments.data / "val"
    train, val = ps.broadcast_object([find(root) for root in roots] if ps.rank() == 0 else None)
    for one in (train, val):
        if isinstance(one, str):
            leave(one)
    if train[0] != val[0]:
        leave(
            f"{roots[0]} has {len(train[0])} classes, {roots[1]} has {len(val[0])}: expected the same folders in both"
        )
    folders = (
        Folder(root, paths, labels, arguments.size, smallest)
        for root, (_, paths, labels), smallest in zip(roots, (train, val), (arguments.crop_from, None), strict=True)
    )
    return *folders, len(train[0])


def leave_signals_to_the_rank(worker: int) -> None:
    """A batch system sends its signal to workers too, and it would end them."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def loader(data: Dataset, sampler: Any, workers: int, lasting: bool) -> DataLoader:
    """Return a loader whose workers are not forks of this process: those can harm MPI on fast networks.

    Args:
        lasting: keep the workers from one epoch to the next.
    """
    multiprocessing.set_forkserver_preload(["torch", "PIL.Image"])  # imported once for all workers of this rank
    return DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=leave_signals_to_the_rank,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=lasting and workers > 0,
    )


# ---------------------------------------------------------------------- models


class Block(nn.Module):
    """Two convolutions, added to what came in; where the image shrinks, what came in is cut and filled with zeros."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride = width // before
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        kept = x[:, :, :: self.stride, :: self.stride]
        return (y + nn.functional.pad(kept, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))).relu()


def small_resnet(blocks: int, classes: int) -> nn.Module:
    """Return a ResNet for images of about 32 pixels (He et al. 2016, section 4.2)."""
    widths = [16, *([16] * blocks), *([32] * blocks), *([64] * blocks)]
    body = [Block(before, width) for before, width in pairwise(widths)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *body, *head)


def network(name: str, classes: int) -> nn.Module:
    if name in SMALL:
        return small_resnet(SMALL[name], classes)
    try:
        from torchvision import models
    except (ImportError, RuntimeError, OSError) as error:  # a build for another torch fails in many ways
        version = torch.__version__.split("+")[0]
        leave(
            f"--model {name} needs torchvision, and it does not import ({error}). Install the one that fits this "
            f"torch: `pip install torchvision torch=={version}`, from the index that torch came from. Without it there "
            f"are {', '.join(SMALL)}"
        )
    if name not in models.list_models(module=models):
        leave(f"--model {name}: torchvision has no such model; expected one of {', '.join(SMALL)}, resnet50, ...")
    # Goyal et al. 2017: every block of a ResNet begins as the identity.
    return models.get_model(name, num_classes=classes, **({"zero_init_residual": True} if "resne" in name else {}))


def sgd(model: nn.Module, arguments: argparse.Namespace, rate: float) -> torch.optim.Optimizer:
    """Weight decay is for the weights of convolutions and layers, not for norms and biases."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": arguments.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def schedule(arguments: argparse.Namespace, steps: int, start: float) -> Callable[[int], float]:
    """Return the factor of the learning rate at each step: up along a line from ``start``, then down.

    Args:
        steps: of an epoch.
        start: the rate of the reference batch over that of this batch.
    """
    warm_up, end = arguments.warm_up * steps, arguments.epochs * steps

    def factor(step: int) -> float:
        if step < warm_up:
            return start + (1 - start) * step / warm_up
        if arguments.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, end - warm_up)))
        return 0.1 ** sum(step >= part * end for part in (30 / 90, 60 / 90, 80 / 90))

    return factor


# ---------------------------------------------------------------------- training together


def start_ddp(model: nn.Module, device: torch.device, whole_job: bool) -> nn.Module:
    """Wrap the model in DistributedDataParallel, over the whole job or over the ranks of this host."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    token = ps.broadcast_object(uuid.uuid4().hex)
    if whole_job:
        name = "127.0.0.1" if ps.local_size() == ps.size() else ps.broadcast_object(socket.gethostname())
        os.environ.setdefault("MASTER_ADDR", name)
        os.environ.setdefault("MASTER_PORT", "29500")
        torch.distributed.init_process_group(backend, rank=ps.rank(), world_size=ps.size())
    else:
        lanes = int(os.environ.get("PUSHSUM_RANKS_PER_HOST", ps.local_size()))
        store = torch.distributed.FileStore(f"/tmp/imagenet-{token}-{ps.rank() // lanes}", lanes)
        torch.distributed.init_process_group(backend, store=store, rank=ps.rank() % lanes, world_size=lanes)
    return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def wrap(
    arguments: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> ps.PushSumOptimizer:
    """Return the optimizer that gossips as the arguments say."""
    graph = named_graph(arguments.graph) if arguments.graph else None
    algorithm = None
    dense = round(arguments.dense_epochs * steps)
    if arguments.hybrid == "ar/1p":
        algorithm = ps.algorithms.PeriodicAverage(first=dense)
    elif arguments.hybrid == "2p/1p":
        graph = ps.graphs.Schedule(
            [(dense, ps.graphs.KPeerExponential(2)), (None, graph or ps.graphs.OnePeerExponential())]
        )
    staleness = arguments.staleness if arguments.staleness == "unbounded" else int(arguments.staleness)
    options = {"graph": graph, "algorithm": algorithm, "staleness": staleness, "wire_dtype": arguments.wire}
    return ps.PushSumOptimizer(optimizer, model, within_host=arguments.within_host, **options)


@contextlib.contextmanager
def same_buffers(model: nn.Module) -> Iterator[None]:
    """Under DDP all ranks hold the same parameters; the running statistics are those of rank 0."""
    ps.broadcast_parameters(dict(model.named_buffers()))
    yield


class Run:
    """What forward and backward passes need to know."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device) -> None:
        self.arguments, self.device = arguments, device
        self.mean, self.deviation = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, DEVIATION))
        self.dtype = getattr(torch, arguments.autocast) if arguments.autocast else None

    def on_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Copy a batch, a byte per colour, and normalise it there."""
        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return (images.float() - self.mean) / self.deviation, labels.to(self.device, non_blocking=True)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return model(images)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Folder) -> dict[str, float]:
        """Collective. Count right answers; each image is seen by one rank, so that every one counts once."""
        mine = Subset(data, range(ps.rank(), len(data), ps.size()))
        batches = BatchSampler(range(len(mine)), self.arguments.batch, drop_last=False)
        counts, total = torch.zeros(3, dtype=torch.int64, device=self.device), torch.zeros((), device=self.device)
        model.eval()
        for images, labels in loader(mine, batches, self.arguments.workers, lasting=False):
            images, labels = self.on_device(images, labels)
            scores = self.forward(model, images).float()
            best = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]
            counts += torch.stack([best[:, 0].sum(), best.sum(), torch.tensor(len(labels), device=self.device)])
            total += cross_entropy(scores, labels, reduction="sum")
        model.train()
        right, right_of_5, seen = ps.sum(counts).tolist()
        return {
            "top1": round(right / seen, 6), "top5": round(right_of_5 / seen, 6),
            "val_loss": round(ps.sum(total.item()) / seen, 5), "evaluated": seen,
        }  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder with train/CLASS/* and val/CLASS/*")
    parser.add_argument("--model", default="resnet50", help="(default resnet50)")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (default 224)")
    parser.add_argument(
        "--crop-from", type=float, default=0.08, help="least part of the area to cut out (default 0.08)"
    )
    parser.add_argument("--workers", type=int, default=8, help="processes per rank that read images (default 8)")
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=int, default=90, help="(default 90)")
    group.add_argument("--batch", type=int, default=32, help="images per rank and backward pass (default 32)")
    group.add_argument("--accumulate", type=int, default=1, metavar="K", help="backward passes per step (default 1)")
    group.add_argument("--lr", type=float, default=0.1, help="for 256 images per step of all ranks (default 0.1)")
    group.add_argument("--warm-up", type=float, default=5.0, help="epochs (default 5)")
    group.add_argument("--schedule", choices=["step", "cosine"], default="step", help="(default step)")
    group.add_argument("--weight-decay", type=float, default=1e-4, help="(default 1e-4)")
    group.add_argument("--label-smoothing", type=float, default=0.1, help="(default 0.1)")
    group.add_argument("--autocast", choices=["bfloat16", "float16"], help="compute in this type")
    group.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("together")
    group.add_argument("--staleness", default="0", help="0, 1, 2, ... or unbounded (default 0)")
    group.add_argument("--graph", help="as `pushsum graphs` takes it, such as Ring (default: the library's own)")
    group.add_argument("--hybrid", choices=["ar/1p", "2p/1p"], help="first all-reduce, or two peers; then one peer")
    group.add_argument("--dense-epochs", type=float, default=30.0, help="until --hybrid changes (default 30)")
    group.add_argument("--wire", metavar="DTYPE", help="send in this type: bfloat16, float16 or int8")
    group.add_argument("--within-host", choices=["gradients", "ddp"], help="a host is one participant")
    group.add_argument("--baseline", choices=["ddp"], help="instead of push-sum: DistributedDataParallel")
    group = parser.add_argument_group("files")
    group.add_argument("--checkpoints", type=Path, metavar="DIR", help="save there, and go on from what is there")
    group.add_argument("--save-every", type=int, default=1000, metavar="STEPS", help="(default 1000)")
    group.add_argument("--json", type=Path, metavar="FILE", help="append the lines to a file instead of printing them")
    group.add_argument("--tensorboard", type=Path, metavar="DIR", help="write curves there, too")
    arguments = parser.parse_args()
    if arguments.baseline and (arguments.checkpoints or arguments.within_host or arguments.hybrid):
        parser.error("--baseline ddp goes without --checkpoints, --within-host and --hybrid: these are of push-sum")
    if importlib.util.find_spec("PIL") is None:
        parser.error("this program reads images with Pillow, which is not installed: `pip install pillow`")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    device = ps.local_device()  # this rank's GPU; the CPU where there is none
    torch.backends.cudnn.benchmark = True
    train, val, classes = datasets(arguments)
    torch.manual_seed(arguments.seed + ps.rank())  # crops differ between ranks; the model will be that of rank 0
    # One item of the loader is what a rank takes for one step; every rank takes equally many steps.
    sampler = DistributedSampler(train, num_replicas=ps.size(), rank=ps.rank(), seed=arguments.seed, drop_last=True)
    groups = BatchSampler(sampler, arguments.batch * arguments.accumulate, drop_last=True)
    batches = loader(train, groups, arguments.workers, lasting=True)
    if len(batches) == 0:
        leave(f"{len(train)} images are too few for one step of {ps.size()} ranks: choose a smaller --batch")

    run = Run(arguments, device)
    model = network(arguments.model, classes).to(device, memory_format=torch.channels_last)
    together = arguments.batch * arguments.accumulate * ps.size()
    rate = arguments.lr * together / REFERENCE_BATCH
    optimizer = sgd(model, arguments, rate)
    trained, averaged = model, lambda: same_buffers(model)
    if arguments.baseline or arguments.within_host == "ddp":
        trained = start_ddp(model, device, whole_job=bool(arguments.baseline))
    if not arguments.baseline:
        optimizer = wrap(arguments, model, optimizer, len(batches))
        averaged = optimizer.averaged
    factor = schedule(arguments, len(batches), min(1.0, REFERENCE_BATCH / together))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    scaler = torch.amp.GradScaler(device.type, enabled=arguments.autocast == "float16")
    loss_of_epoch = ps.Metric()
    saver, begin = None, {"epoch": 0}
    if arguments.checkpoints:
        also = {"loss of the epoch": loss_of_epoch}
        options = {"every": arguments.save_every, "scheduler": scheduler, "scaler": scaler, "also": also}
        saver = ps.checkpoint.Saver(arguments.checkpoints, optimizer, **options)
        begin = saver.resume() or begin
    writer = board(arguments)

    for epoch in range(begin["epoch"], arguments.epochs):
        sampler.set_epoch(epoch)
        ps.barrier()  # all ranks start the clock together
        start = time.perf_counter()
        steps = train_epoch(run, trained, optimizer, scheduler, scaler, batches, saver, loss_of_epoch, epoch)
        ps.barrier()
        seconds = time.perf_counter() - start
        values = {"epoch": epoch + 1, "train_loss": round(loss_of_epoch.compute(), 5)}
        loss_of_epoch.reset()
        with averaged():
            values |= run.evaluate(model, val)
        values |= {"images_per_second": round(steps * together / seconds, 1), "seconds": round(seconds, 3)}
        report(arguments, {**values, "lr": scheduler.get_last_lr()[0]}, writer)

    if saver is not None and begin["epoch"] < arguments.epochs:
        saver.save(epoch=arguments.epochs)  # `pushsum consolidate` makes one plain model of it
    if not arguments.baseline:
        optimizer.close()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train_epoch(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    scaler: torch.amp.GradScaler,
    batches: DataLoader,
    saver: ps.checkpoint.Saver | None,
    loss_of_epoch: ps.Metric,
    epoch: int,
) -> int:
    """Train on every batch of this rank that was not seen before a checkpoint; return how many steps that were."""
    accumulate = run.arguments.accumulate
    left = batches if saver is None else saver.batches(batches)
    steps = len(left)
    # DDP and, within a host, push-sum sum gradients up before they average them.
    quiet = model.no_sync if isinstance(model, nn.parallel.DistributedDataParallel) else optimizer.no_sync
    bar = tqdm(total=len(batches), initial=len(batches) - steps, desc=f"epoch {epoch + 1}", leave=False, unit="step",
               disable=ps.rank() != 0)  # fmt: skip
    with bar, until_all_are_through(optimizer, saver):
        for step, (images, labels) in enumerate(left):
            optimizer.zero_grad()
            parts = zip(images.chunk(accumulate), labels.chunk(accumulate), strict=True)
            for index, part in enumerate(parts):
                with quiet() if index + 1 < accumulate else contextlib.nullcontext():
                    some, wanted = run.on_device(*part)
                    scores = run.forward(model, some).float()
                    loss = cross_entropy(scores, wanted, label_smoothing=run.arguments.label_smoothing)
                    scaler.scale(loss / accumulate).backward()
                loss_of_epoch.update(loss.detach(), len(wanted))
            scaler.step(optimizer)  # an overflow leaves out this rank's update, never its round
            scaler.update()
            scheduler.step()
            bar.update()
            if step % 50 == 49:
                bar.set_postfix(loss=f"{loss_of_epoch.local:.3f}")
            if saver is not None:
                saver.after_step(epoch=epoch)
    return steps


def until_all_are_through(optimizer: torch.optim.Optimizer, saver: Any) -> AbstractContextManager[None]:
    """Return a context in which ranks that are faster than others go on gossiping until these have finished too.

    A Saver does nothing inside: where there is one, fast ranks wait at the end of an epoch instead.
    """
    asynchronous = isinstance(optimizer, ps.PushSumOptimizer) and optimizer.staleness == "unbounded"
    return optimizer.join() if asynchronous and saver is None else contextlib.nullcontext()


def board(arguments: argparse.Namespace) -> Any:
    """Return a writer for TensorBoard on rank 0, if it is asked for."""
    if arguments.tensorboard is None or ps.rank() != 0:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        leave("--tensorboard needs a package that is not installed: `pip install tensorboard`")
    return SummaryWriter(arguments.tensorboard)


def report(arguments: argparse.Namespace, values: dict[str, float], writer: Any) -> None:
    if ps.rank() != 0:
        return
    if writer is not None:
        for name, value in values.items():
            writer.add_scalar(name, value, values["epoch"])
        writer.flush()
    mode = arguments.baseline or f"staleness {arguments.staleness}"
    line = json.dumps({**values, "mode": mode, "seed": arguments.seed, "ranks": ps.size()})
    if arguments.json:
        with arguments.json.open("a") as file:
            print(line, file=file)
    else:
        tqdm.write(line, file=sys.stdout)


if __name__ == "__main__":
    main()
