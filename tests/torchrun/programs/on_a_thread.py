"""As Ray Train does it: a default process group is there, and a thread that is not the main one trains.

python on_a_thread.py FOLDER
"""

import sys
import threading

import torch
import torch.distributed as dist

import pushsum_opt as ps
from pushsum_opt.job import launch

STEPS, SAVED_AT = 7, 5
ended = []


def train():
    model = torch.nn.Linear(3, 2)
    optimizer = ps.PushSumOptimizer(torch.optim.SGD(model.parameters(), lr=0.01), model, staleness=1)
    saver = ps.checkpoint.Saver(sys.argv[1], optimizer, every=SAVED_AT)
    begin = (saver.resume() or {"step": 0})["step"]
    for step in range(begin, STEPS):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        saver.after_step(step=step + 1)
    optimizer.close()
    ended.append((begin, ps.sum(optimizer.push_weight)))


dist.init_process_group("gloo")
assert launch.chosen().torch
for _ in range(2):  # the second time it goes on from the checkpoint
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
assert [begin for begin, _ in ended] == [0, SAVED_AT], ended
assert all(abs(mass - ps.size()) < 1e-12 for _, mass in ended), ended
dist.destroy_process_group()
print(f"rank {ps.rank()} of {ps.size()}: ok")
