"""Two ranks make different collective calls, and each waits for the other."""

import pushsum_opt as ps

ps.barrier()
if ps.rank() == 0:
    ps.average(1.0)
ps.barrier()
