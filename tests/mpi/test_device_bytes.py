"""What GPUs ask of real MPI, without one: buffers by address, buffers that are late, and the trial on host memory."""

from __future__ import annotations

import re
import sys

import pytest
from memory.test_staging import digests_on_the_host
from mpi.launch import succeeds, succeeds_among

from pushsum_opt.cuda_aware import trial

pytestmark = pytest.mark.mpi

EMULATED = [f"PUSHSUM_CHUNK_BYTES=512 emulated.py {way} {tau}" for way in ("direct", "staged") for tau in (0, 2)]


def test_memory_that_is_only_known_by_its_address_is_sent_and_received():
    succeeds(2, "device_bytes.py")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["direct", "staged"])
@pytest.mark.parametrize("staleness", [0, 2])
def test_late_streams_change_no_bit_over_mpi(way, staleness, monkeypatch):
    """With staleness, a thread begins the transfers as the emulated device gets ready."""
    monkeypatch.setenv("PUSHSUM_CHUNK_BYTES", "512")
    expected = digests_on_the_host(3, staleness=staleness, wire="bfloat16")
    output = succeeds_among(EMULATED, 3, f"PUSHSUM_CHUNK_BYTES=512 emulated.py {way} {staleness}")
    assert re.findall(r"digest \d+ (\w+) (\S+)", output) == expected


def on_host(tmp_path):
    """The trial's own command, told to take host memory instead of a GPU's."""
    command = trial._default_command()
    assert command[-2:] == ["-m", "pushsum_opt.cuda_aware.program"]
    script = tmp_path / "on_host.py"
    script.write_text(f"import os, sys\nos.execv({command[0]!r}, {command!r} + [sys.argv[1], '--on-host'])\n")
    return [sys.executable, str(script)]


def test_trial_comes_to_its_end_with_a_rate_for_every_way(tmp_path):
    found = trial.try_out(on_host(tmp_path), cache=tmp_path)
    assert "error" not in found
    assert (found["ranks"], found["right"], found["host_right"]) == (2, True, True)
    assert all(found[way] > 0 for way in ("copy_in", "copy_out", "hardware", "host", "direct"))


def test_trial_can_be_started_by_the_ranks_of_a_job_and_they_share_it(tmp_path):
    (tmp_path / "command").write_text("\n".join(on_host(tmp_path)))
    succeeds(3, "trial.py", str(tmp_path))
    assert len(list(tmp_path.glob("*.json"))) == 1
    assert len((tmp_path / "started").read_text()) == 1
