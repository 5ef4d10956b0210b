"""What a test needs of the MPI at hand."""

from __future__ import annotations

import pytest
from mpi.launch import launcher

# The one launcher of these tests that takes --bind-to is Open MPI's.
needs_fault_tolerance = pytest.mark.skipif("--bind-to" not in launcher(), reason="MPICH ends the job when a rank dies")
