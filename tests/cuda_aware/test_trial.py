"""The trial of GPU memory: whatever happens in it, the training starts, on a way that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import types

import pytest

from pushsum_opt import cuda_aware, settings
from pushsum_opt.cuda_aware import trial
from pushsum_opt.cuda_aware.trial import advise, judge, outside_of_job, try_out
from pushsum_opt.errors import ConfigurationError
from pushsum_opt.job.process_groups import Job

GOOD = {
    "stage": "done",
    "visible": 4,
    "copy_in": 24.0,
    "copy_out": 22.0,
    "host": 11.0,
    "hardware": 200.0,
    "host_right": True,
    "right": True,
    "size": 1 << 25,
    "direct": 150.0,
}


def command(tmp_path, *lines):
    """A trial of our own: a program that is given the file for its result."""
    script = tmp_path / "trial.py"
    head = ["import json, os, pathlib, sys, time", "result = pathlib.Path(sys.argv[1])", f"good = {GOOD!r}"]
    script.write_text("\n".join([*head, *lines]))
    return [sys.executable, str(script)]


def write(facts):
    return f"result.write_text(json.dumps({facts}))"


# What may happen


def test_success_is_direct_with_its_rate(tmp_path):
    found = try_out(command(tmp_path, write("good")), cache=tmp_path)
    assert found == GOOD
    verdict = judge("auto", lambda: found)
    assert verdict.direct
    assert "150.0 GB/s" in verdict.why
    assert "through the host: 11.0" in verdict.why
    assert verdict.advice == ""


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ("os.abort()", "exit code -6"),
        ("os._exit(139)", "exit code 139"),
        ("print('*** Process received signal ***\\nSignal: 11'); sys.exit(1)", "received signal"),
        ("raise RuntimeError('no such transport')", "RuntimeError: no such transport"),
    ],
)
def test_crash_costs_nothing_and_keeps_what_was_found_before_it(tmp_path, end, says):
    before = {key: value for key, value in GOOD.items() if key not in ("right", "size", "direct")}
    before["stage"] = "messages from GPU memory"
    found = try_out(command(tmp_path, write(before), end), cache=tmp_path)
    verdict = judge("auto", lambda: found)
    assert not verdict.direct
    assert says in verdict.why
    assert "while messages from GPU memory" in verdict.why
    assert "about 11.0 GB/s" in verdict.why
    assert verdict.advice


def test_crash_after_the_last_message_is_a_crash(tmp_path):
    found = try_out(command(tmp_path, write("good"), "os._exit(1)"), cache=tmp_path)
    assert not judge("auto", lambda: found).direct


def test_wrong_data_is_never_taken_whatever_the_rate(tmp_path):
    found = try_out(command(tmp_path, write("{**good, 'right': False, 'size': 262148}")), cache=tmp_path)
    verdict = judge("auto", lambda: found)
    assert not verdict.direct
    assert "not what was sent, at 262148 bytes" in verdict.why


def test_hang_is_ended_with_all_that_it_started(tmp_path):
    pid = tmp_path / "pid"
    lines = [
        "import subprocess",
        "child = subprocess.Popen(['sleep', '600'])",
        f"open({str(pid)!r}, 'w').write(str(child.pid))",
    ]
    begin = time.monotonic()
    found = try_out(command(tmp_path, *lines, "time.sleep(600)"), limit=5.0, cache=tmp_path)
    assert time.monotonic() - begin < 300
    assert "no answer within 5 s" in found["error"]
    assert not judge("auto", lambda: found).direct
    with pytest.raises(OSError, match="No such process"):
        for _ in range(600):
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.1)
            if "Z" in _state(pid.read_text()):
                raise OSError("No such process")  # ended; nobody has collected it yet


def _state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def test_no_launcher_and_no_program_are_no_way(tmp_path):
    assert not judge("auto", lambda: try_out([], cache=tmp_path)).direct
    silent = try_out(command(tmp_path, "pass"), cache=tmp_path)
    assert "ended early" in silent["error"]


def test_slow_device_messages_lose_against_the_host():
    verdict = judge("auto", lambda: {**GOOD, "direct": 0.4})
    assert not verdict.direct
    assert "moves only 0.4 GB/s" in verdict.why
    assert "0.4 GB/s between GPUs, where the hardware copies 200.0" in verdict.advice


def test_far_less_than_the_hardware_gives_is_taken_with_advice():
    verdict = judge("auto", lambda: {**GOOD, "direct": 20.0}, {})
    assert verdict.direct
    assert "pushsum run" in verdict.advice


def test_ranks_that_share_one_gpu_are_not_called_slow():
    verdict = judge("auto", lambda: {**GOOD, "visible": 1, "hardware": 1500.0}, {"CUDA_VISIBLE_DEVICES": "0"})
    assert verdict.direct
    assert verdict.advice == ""
    lost = advise({**GOOD, "visible": 1, "on_host": 1, "direct": 0.4}, {"CUDA_VISIBLE_DEVICES": "0"})
    assert "share one GPU" in lost
    assert "see all of its GPUs" not in lost, "there is only one"


@pytest.mark.parametrize(
    ("environ", "found", "says"),
    [
        ({"OMPI_MCA_mpi_ft_enable": "1"}, {"error": "exit code 139"}, "a job that outlives its ranks goes this way"),
        ({"UCX_TLS": "rc,sm"}, GOOD, "cuda_copy,cuda_ipc"),
        ({"OMPI_MCA_pml": "ob1"}, GOOD, "turns UCX off"),
        ({"CUDA_VISIBLE_DEVICES": "3"}, {**GOOD, "visible": 1}, "ps.local_device()"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, GOOD, "pushsum run"),
        ({"UCX_TLS": "^tcp"}, GOOD, "pushsum run"),
    ],
)
def test_advice_names_what_is_set_wrongly(environ, found, says):
    assert says in advise(found, environ)


def test_a_wish_is_followed_without_a_trial():
    def never():
        raise AssertionError("no trial was asked for")

    assert judge("1", never).direct
    assert not judge("0", never).direct
    assert "PUSHSUM_CUDA_AWARE=0" in judge("0", never).why


# Remembering


def counting(tmp_path):
    return command(tmp_path, f"open({str(tmp_path / 'count')!r}, 'a').write('x')", "time.sleep(0.5)", write("good"))


def test_result_is_remembered_for_this_mpi_and_its_settings(tmp_path, monkeypatch):
    for _ in range(2):
        assert try_out(counting(tmp_path), cache=tmp_path) == GOOD
    assert (tmp_path / "count").read_text() == "x"
    monkeypatch.setenv("UCX_TLS", "all")
    assert try_out(counting(tmp_path), cache=tmp_path) == GOOD
    assert (tmp_path / "count").read_text() == "xx"


def test_ranks_of_a_host_try_once_together(tmp_path):
    code = (
        "import pathlib, sys; from pushsum_opt.cuda_aware.trial import try_out\n"
        f"assert try_out({counting(tmp_path)!r}, cache=pathlib.Path({str(tmp_path)!r}))['right']"
    )
    ranks = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * 4
    assert (tmp_path / "count").read_text() == "x"


def test_unreadable_memory_of_a_trial_is_tried_again(tmp_path):
    try_out(counting(tmp_path), cache=tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_text("{")
    assert try_out(counting(tmp_path), cache=tmp_path) == GOOD
    assert json.loads(file.read_text())["facts"] == GOOD


@pytest.mark.parametrize(
    "failure", ["raise MemoryError('out of memory, this once')", "os.kill(os.getpid(), 9)", "time.sleep(600)"]
)
def test_failure_that_may_pass_is_tried_again(tmp_path, failure):
    once = f"once = pathlib.Path({str(tmp_path / 'once')!r})"
    lines = [once, "first = not once.exists()", "once.touch()", f"if first: {failure}", write("good")]
    limit = 5.0 if "sleep" in failure else 60.0
    assert "error" in try_out(command(tmp_path, *lines), cache=tmp_path, limit=limit)
    assert try_out(command(tmp_path, *lines), cache=tmp_path, limit=60.0) == GOOD


def test_crash_with_gpu_memory_is_believed_when_it_was_seen_twice(tmp_path):
    count = tmp_path / "count"
    lines = [f"open({str(count)!r}, 'a').write('x')", write("{'stage': 'messages from GPU memory'}"), "os.abort()"]
    for _ in range(4):
        assert "exit code -6" in try_out(command(tmp_path, *lines), cache=tmp_path)["error"]
    assert count.read_text() == "xx"


def test_ranks_of_one_job_share_a_failure_and_the_next_job_tries_again(tmp_path):
    count = tmp_path / "count"
    script = command(tmp_path, f"open({str(count)!r}, 'a').write('x')", "sys.exit(1)")
    code = (
        "import pathlib; from pushsum_opt.cuda_aware.trial import try_out\n"
        f"assert 'error' in try_out({script!r}, cache=pathlib.Path({str(tmp_path)!r}))"
    )
    for job in ("a", "a", "b"):
        environ = {**os.environ, "OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": job}
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environ)
    assert count.read_text() == "xx"


def test_result_is_forgotten_when_a_version_changes(tmp_path, monkeypatch):
    try_out(counting(tmp_path), cache=tmp_path)
    monkeypatch.setattr(trial.metadata, "version", lambda name: "99")
    try_out(counting(tmp_path), cache=tmp_path)
    assert (tmp_path / "count").read_text() == "xx"


def test_folder_of_another_user_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(trial.tempfile, "gettempdir", lambda: str(tmp_path))
    mine = trial._own_folder()
    assert mine is not None
    assert mine.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(trial.os, "getuid", lambda: 12345)
    mine.rename(tmp_path / "pushsum_opt-12345")
    assert trial._own_folder() is None


# Outside of the job


def test_trial_is_no_part_of_the_job_but_sees_how_mpi_is_set_up():
    job = {
        "PMIX_RANK": "3",
        "OMPI_COMM_WORLD_SIZE": "4",
        "PRTE_LAUNCHED": "1",
        "SLURM_JOB_ID": "7",
        "PMI_RANK": "1",
        "OMPI_MCA_num_procs": "4",
    }
    kept = {
        "OMPI_MCA_pml": "ucx",
        "UCX_TLS": "all",
        "LD_LIBRARY_PATH": "/opt/ucx",
        "PATH": "/bin",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    assert outside_of_job({**job, **kept}) == kept


def test_setting_is_auto_1_or_0():
    assert settings.read({}).cuda_aware == "auto"
    assert settings.read({"PUSHSUM_CUDA_AWARE": "0"}).cuda_aware == "0"
    with pytest.raises(ConfigurationError, match="PUSHSUM_CUDA_AWARE='yes': expected one of auto, 1, 0"):
        settings.read({"PUSHSUM_CUDA_AWARE": "yes"})


def test_way_is_said_once_with_its_advice_as_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(cuda_aware, "_said", False)
    verdict = judge("auto", lambda: {**GOOD, "direct": 0.4})
    for _ in range(2):
        cuda_aware._say(verdict)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "goes through pinned host memory" in caplog.text


def test_ranks_of_one_process_and_a_job_of_one_ask_nobody(monkeypatch):
    monkeypatch.setattr(cuda_aware, "try_out", lambda: pytest.fail("nothing is sent over MPI"))
    assert not cuda_aware.takes_device_memory(object())


@pytest.fixture
def over_torch(monkeypatch):
    """Rank 0 of two over torch.distributed; nothing has been said of GPU memory yet."""
    monkeypatch.setattr(cuda_aware, "_said", False)
    return Job(None, 0, 2, "a test").everyone()


def test_over_torch_gpu_memory_goes_through_the_host_unless_nccl_is_asked_for(over_torch, monkeypatch, caplog):
    with caplog.at_level("INFO"):
        assert not cuda_aware.takes_device_memory(over_torch)
    assert "GPU memory: goes through the host and gloo; PUSHSUM_NCCL=1 gives it to NCCL" in caplog.text
    monkeypatch.setenv("PUSHSUM_NCCL", "1")
    for name in ("cupy", "cupy.cuda", "cupy.cuda.nccl"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["cupy.cuda"].nccl = types.SimpleNamespace(get_version=lambda: 23203, available=True)
    verdict = cuda_aware.judge_nccl(True, {"CUDA_DEVICE_MAX_CONNECTIONS": "8"})
    assert (verdict.why, verdict.advice) == ("is given to NCCL 2.32.3 (PUSHSUM_NCCL=1)", "")
    assert "may wait for ever" in cuda_aware.judge_nccl(True, {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}).advice
    assert cuda_aware.takes_device_memory(over_torch)
    assert not cuda_aware.takes_device_memory(Job(None, 0, 1, "a test").everyone()), "nothing is sent"


@pytest.mark.parametrize("what", ["cupy", "NCCL"])
def test_over_torch_nccl_that_cannot_be_loaded_is_said_with_the_fix(over_torch, monkeypatch, what):
    monkeypatch.setenv("PUSHSUM_NCCL", "1")
    cupy = None if what == "cupy" else types.ModuleType("cupy")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", types.SimpleNamespace(nccl=types.SimpleNamespace(available=False)))
    with pytest.raises(ConfigurationError, match=r"rank 0: PUSHSUM_NCCL=1, and cupy cannot load NCCL .*nvidia-nccl"):
        cuda_aware.takes_device_memory(over_torch)


CHANGING = """
import logging, os, sys
sys.modules["torch"] = None  # nothing here needs it
logging.basicConfig(stream=sys.stdout, format="%(message)s")
how = sys.argv[1]
if how == "before":
    os.environ["CUDA_VISIBLE_DEVICES"] = "1"
if how == "by the user":
    from mpi4py import MPI
from pushsum_opt import cuda_aware
from pushsum_opt.job import world
if how == "not started":
    import mpi4py
    mpi4py.rc.initialize = False
    from mpi4py import MPI
    os.environ["CUDA_VISIBLE_DEVICES"] = "1"
comm = world.communicator()
if how in ("after", "by the user"):
    os.environ["CUDA_VISIBLE_DEVICES"] = "1"
if how == "unset":
    del os.environ["CUDA_VISIBLE_DEVICES"]
for _ in range(2):
    cuda_aware.takes_device_memory(comm)
world.finalize_if_nobody_does()
"""


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("never", None),
        ("before", None),
        ("not started", None),
        ("after", "rank 0: CUDA_VISIBLE_DEVICES was '0,1' when MPI started and is '1' now."),
        ("by the user", "rank 0: CUDA_VISIBLE_DEVICES was '0,1' when MPI started and is '1' now."),
        ("unset", "rank 0: CUDA_VISIBLE_DEVICES was '0,1' when MPI started and is not set now."),
    ],
)
def test_devices_chosen_after_mpi_started_are_warned_of_once(how, says):
    done = subprocess.run(
        [sys.executable, "-c", CHANGING, how],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "0,1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == (says is not None)
    assert all(line.startswith(says) and "ps.local_device()" in line for line in lines)
