"""Rank 1 has a smaller buffer than rank 0's message: gloo itself would end the process.

python too_long.py {exits,raises}: how rank 0 ends, whose message is never taken, so that a thread waits for that.
"""

import atexit
import os
import sys
import time

if os.environ["RANK"] == "1":
    atexit.register(time.sleep, 4.0)  # the last thing that it does: its connections outlive rank 0's wait for them

import numpy as np

from pushsum_opt import transport
from pushsum_opt.errors import MismatchError
from pushsum_opt.job import world
from pushsum_opt.observe.events import Events
from pushsum_opt.transport.waiting import Waiter

comm = world.communicator()
channel = transport.connect(comm)
waiter = Waiter(channel, Events(), 30.0)
if comm.rank == 0:
    channel.post(np.zeros(100_000, np.uint8), 1, 0, "it")
else:
    try:
        waiter.wait((channel.expect(np.zeros(10, np.uint8), 0, 0, "its message"),), 0)
    except MismatchError as error:
        print(error)
waiter.wait((channel.barrier("the end"),), 0)
channel.close()
if comm.rank == 0:
    if sys.argv[1] == "exits":
        sys.exit(5)
    raise ValueError("nobody catches this")
