"""A run that is killed once: python restarted.py FOLDER STEPS HOW, with HOW "rank" or "host".

In its first start, in step 10, rank 1 kills itself; or all that runs on the host named "another" is killed, and that
host answers no more. Each rank writes what it ends with to FOLDER/end-R: how often the job was started again, the step
at which it began, its push weight, and a digest of all bits.
"""

import os
import signal
import socket
import sys
from pathlib import Path

from mpi4py import MPI
from optimizer.common import KINDS, bits, closure_of, network, star, values

import pushsum_opt as ps

folder, steps, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
restarts = int(os.environ["PUSHSUM_RESTARTS"])
comm = MPI.COMM_WORLD
model = network()
memory = folder / "memory" / socket.gethostname()
memory.mkdir(parents=True, exist_ok=True)
inner = KINDS["SGD"](model.parameters(), lr=0.01)
optimizer = ps.PushSumOptimizer(inner, model, graph=star if how == "rank" else None)
saver = ps.checkpoint.Saver(
    folder / "checkpoints", optimizer, memory_every=4, memory_directory=memory, memory_limit=1.0
)
begin = (saver.resume() or {"step": 0})["step"]
start = optimizer.push_weight
for step in range(begin, steps):
    optimizer.step(closure_of(model, step, comm.rank))
    if step == 10 and restarts == 0:
        if how == "rank" and comm.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "host" and socket.gethostname() == "another":
            (folder / "lost").touch()
            os.kill(int(os.environ["WARM_PARENT"]), signal.SIGKILL)  # the daemon of MPI
            os.kill(os.getpid(), signal.SIGKILL)
    saver.after_step(step=step + 1)
optimizer.close()
(folder / f"end-{comm.rank}").write_text(
    f"{restarts} {begin} {start!r} {optimizer.push_weight!r} {b''.join(bits(values(model))).hex()}"
)
