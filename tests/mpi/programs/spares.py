"""Ranks die, and spares take their places. Arguments: a folder, the mode, and what happens to which process.

2@10: process 2 is killed in step 10. 4@+3: process 4, a spare, is killed 3 steps after it has begun to train.
4!waiting, 4!load: a spare is killed while it waits, or while it is taken in. 4!early: it makes a call of all ranks too
early. 3!closes: that asynchronous rank closes while a vote is open in which all agree to take a spare in. no-saver: the
script has no Saver. alone: it ends in step 40, whoever is left.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

import pushsum_opt as ps
from pushsum_opt.checkpoint import saver as savers
from pushsum_opt.value_digest import digest

folder, mode, *happens = sys.argv[1:]
staleness = mode if mode == "unbounded" else int(mode)
process = int(os.environ["OMPI_COMM_WORLD_RANK"])
trains = int(os.environ["OMPI_COMM_WORLD_SIZE"]) - int(os.environ["PUSHSUM_SPARES"])
is_spare = process >= trains


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def find(mark: str, who: int) -> list[str]:
    return [one.partition(mark)[2] for one in happens if one.startswith(f"{who}{mark}")]


if find("!", process) == ["waiting"]:
    from pushsum_opt.spares.waiting import Spare

    Spare._leave_if_not_needed = die
if find("!", process) == ["load"]:
    savers.load_position = die

me, size = ps.rank(), ps.size()
assert size == trains, size
if find("!", process) == ["early"]:
    ps.barrier()
    ps.allgather(1)
torch.manual_seed(process)
model = torch.nn.Linear(50, 40)
wrapped = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
optimizer = ps.PushSumOptimizer(
    wrapped, model, staleness=staleness, on_loss="continue", timeout=60, data_weight=1.0 + me % 2
)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.99)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=6)
assert (optimizer.rank, optimizer.size, optimizer.members) == (me, size, tuple(range(size)))
changes: list[tuple[int, ...]] = []
optimizer.on_change(lambda: changes.append(optimizer.members))
needed = 0 if "alone" in happens else sum("@" in one for one in happens)
saver: ps.checkpoint.Saver | None = None
begin = 0
if "no-saver" not in happens:
    options = {"memory_every": 4, "memory_directory": folder, "memory_limit": 1.0} if mode == "1" else {}
    saver = ps.checkpoint.Saver(
        f"{folder}/disk", optimizer, scheduler=scheduler, scaler=scaler, check_every=2, **options
    )
    begin = (saver.resume() or {"step": 0})["step"]
kills = [begin + int(at[1:]) if at[0] == "+" else int(at) for at in find("@", process)]


def is_whole() -> bool:
    """Whether all places of lost ranks are taken: the same in the same step of ranks in step."""
    return sum(len(one.replaced) for one in optimizer.losses) == needed > 0


def mass() -> tuple[float, float]:
    """w, and w times the sum of z."""
    total = sum(parameter.detach().double().sum().item() for parameter in model.parameters())
    return optimizer.push_weight, optimizer.push_weight * total


def compare(before: tuple[float, float], *, is_new: bool) -> None:
    """A newcomer has what another rank has: z, and the states of optimizer, scheduler and scaler. The mean is the same.

    Args:
        before: :func:`mass` before the newcomer was taken in; a newcomer had none.
    """
    states = model.state_dict(), wrapped.state_dict()["state"]
    mine = (*map(digest, states), scheduler.last_epoch, scaler.get_scale(), optimizer.round)
    everyone = ps.allgather((is_new, mine, before, mass()))
    assert {its for new, its, *_ in everyone if new} <= {its for new, its, *_ in everyone if not new}, everyone
    if mode == "0":  # otherwise some mass is in messages
        (w, x), (held, numerator) = (map(sum, zip(*(one[at] for one in everyone), strict=True)) for at in (2, 3))
        assert abs(x / w - numerator / held) < 1e-10, everyone


def closes_now() -> bool:
    """Whether this rank has just cast the vote in which the lowest rank asks to take a spare in."""
    votes, asked = saver._votes, Path(folder, "asked")
    return bool(find("!", process) == ["closes"] and votes.open and asked.exists()) and votes._cast == int(
        asked.read_text()
    )


one_closes = any(one.endswith("!closes") for one in happens)
if one_closes:
    cast = saver._votes.cast

    def cast_and_say(**wishes: bool) -> None:
        if wishes.get("take_in"):
            Path(folder, "asks").write_text(str(saver._votes._cast + 1))
            Path(folder, "asks").rename(Path(folder, "asked"))
        cast(**wishes)

    saver._votes.cast = cast_and_say
step = begin
end = 40 if needed == 0 else None
if is_spare and is_whole():
    end = step + 10
    if not one_closes:
        compare((0.0, 0.0), is_new=True)
while end is None or step < end:
    if step in kills:
        die()
    optimizer.report(member=optimizer.members[optimizer.rank])
    optimizer.zero_grad()
    scaler.scale(model(torch.randn(8, 50)).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    scheduler.step()
    step += 1
    before = mass()
    if saver is not None:
        saver.after_step(step=step)
        if closes_now():
            break
    if end is None and is_whole():
        end = step + 10
        if not one_closes:
            compare(before, is_new=False)
assert scheduler.last_epoch == step
if mode == "0":
    assert abs(optimizer.means()["member"] - sum(optimizer.members) / optimizer.size) < 1e-12, optimizer.means()
if one_closes:
    saver.close()
optimizer.drain()
held, weights = ps.sum(optimizer.push_weight), ps.sum(optimizer.push_sum.initial_weight)
assert abs(held - optimizer.size) < 1e-12, held
assert abs(weights - optimizer.size) < 1e-12, weights
assert changes[-1] == optimizer.members, changes
lost = tuple(sorted(rank for one in optimizer.losses for rank in one.ranks))  # two may die one after the other
left = tuple(sorted(rank for one in optimizer.losses for rank in set(one.ranks) - set(one.replaced)))
print(f"rank {ps.rank()} of {ps.size()}: members {optimizer.members}, lost {lost}, not replaced {left}", flush=True)
if saver is not None:
    saver.close()
optimizer.close()
