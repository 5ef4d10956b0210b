"""Train a small network on handwritten digits, each rank on its own shard, by push-sum gossip.

pushsum run -np 4 examples/digits.py
pushsum run -np 4 examples/digits.py --epochs 30 --staleness 1
mpirun -np 256 python examples/digits.py
pushsum run --survive -np 4 examples/digits.py --on-loss continue
pushsum run --spares 1 -np 4 examples/digits.py --on-loss continue --state digits-state
python examples/digits.py                               # one rank: the plain optimizer
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from tqdm import tqdm

import pushsum_opt as ps


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """1797 images of 8 x 8 pixels: every fifth is for testing."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    labels = torch.tensor(digits.target)
    test = torch.arange(len(labels)) % 5 == 0
    return TensorDataset(images[~test], labels[~test]), TensorDataset(images[test], labels[test])


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )  # fmt: skip


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    images, labels = data.tensors
    return (model(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--staleness", default="0", help="0, 1, 2, ... or unbounded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--on-loss", default="stop", help="what to do when ranks die: stop, or continue without them")
    parser.add_argument("--checkpoint", default="", help="rank 0 saves model and optimizer here")
    parser.add_argument("--state", default="", help="a folder: a stopped run goes on from it, and spares come in")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    train, test = datasets()
    me = ps.rank()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    staleness = arguments.staleness if arguments.staleness == "unbounded" else int(arguments.staleness)
    optimizer = ps.PushSumOptimizer(optimizer, model, staleness=staleness, on_loss=arguments.on_loss)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.epochs)
    saver = ps.checkpoint.Saver(arguments.state, optimizer, scheduler=schedule) if arguments.state else None
    at = (saver and saver.resume()) or {"epoch": 0}
    with tqdm(range(at["epoch"], arguments.epochs), disable=ps.rank() != 0, unit="epoch") as epochs:
        for epoch in epochs:  # all agree on who shares the data of an epoch; a spare comes in the middle of one
            members = at.pop("members", None) or min(ps.allgather(optimizer.members), key=len)
            shard = members.index(me) if me in members else me % len(members)
            sampler = DistributedSampler(train, len(members), shard, seed=arguments.seed, drop_last=True)
            sampler.set_epoch(epoch)
            loader = DataLoader(train, batch_size=max(1, 64 // len(members)), sampler=sampler, drop_last=True)
            for images, labels in saver.batches(loader) if saver else loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
                if saver:
                    saver.after_step(epoch=epoch, members=members)
            schedule.step()
            distance = ps.consensus_distance(optimizer)
            with optimizer.averaged():  # here every rank holds the average of all models
                correct = accuracy(model, test)
            if ps.rank() == 0:
                epochs.write(f"epoch {epoch + 1:2}: test accuracy {correct:.1%}, consensus distance {distance:.4f}")
    average = optimizer.averaged_state_dict()  # on every rank; rank 0 gets it
    if ps.rank() == 0 and arguments.checkpoint:
        torch.save({"model": average, "optimizer": optimizer.state_dict()}, arguments.checkpoint)
    optimizer.close()


if __name__ == "__main__":
    main()
