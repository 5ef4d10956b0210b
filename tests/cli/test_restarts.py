"""``pushsum run --restarts`` starts a job again that has died, on the hosts that answer, and says what it does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pushsum_opt.cli import main, restarting
from pushsum_opt.cli.answering import agent_of, answering, is_here
from pushsum_opt.cli.host_list import hosts_of
from pushsum_opt.cli.launcher import OPEN_MPI, Launcher
from pushsum_opt.cli.own_options import Own, take_own
from pushsum_opt.cli.restarting import keep_running
from pushsum_opt.cli.supervise import Ended, watch
from pushsum_opt.errors import ConfigurationError

ROOT = Path(__file__).parents[2]


def at_once(said: str) -> str:
    """Return what was said as if each attempt had taken no time: a busy machine may take some seconds."""
    return re.sub(r"after \d+ s", "after 0 s", said)


class Job:
    """Ends as it is told: each attempt is (exit code, the round that it saves or None)."""

    def __init__(self, *attempts, asked=False):
        self._attempts = list(attempts)
        self._asked = asked
        self.started = []

    def __call__(self, options, environ):
        code, saved = self._attempts.pop(0)
        self.started.append((list(options), environ["PUSHSUM_RESTARTS"]))
        if saved is not None:
            Path(environ["PUSHSUM_PROGRESS"], "3.saved").write_text(f"{saved}\n")
        return Ended(code, self._asked)


@pytest.mark.parametrize("code", [0, 75, 130])
def test_job_that_ended_well_was_saved_or_was_interrupted_is_not_started_again(code):
    job = Job((code, None))
    assert keep_running(job, ["-np", "2"], {}, 3) == code
    assert len(job.started) == 1


@pytest.mark.parametrize("code", [1, 143])
def test_job_that_a_signal_asked_to_end_is_not_started_again(code):
    assert keep_running(Job((code, 20), asked=True), ["-np", "2"], {}, 3) == code


def test_job_that_dies_is_started_again_and_told_so_until_it_ends_well(capsys):
    job = Job((137, 20), (1, 40), (0, None))
    assert keep_running(job, ["-np", "2"], {}, 3) == 0
    assert job.started == [(["-np", "2"], "0"), (["-np", "2"], "1"), (["-np", "2"], "2")]
    first, second = at_once(capsys.readouterr().err).splitlines()
    assert first == "pushsum run: the job ended with exit code 137 after 0 s, round 20 saved; started again (1 of 3)"
    assert second.endswith("exit code 1 after 0 s, round 40 saved; started again (2 of 3)")


@pytest.mark.parametrize(("survivors", "code"), [(False, 1), (True, 0)])
def test_a_rank_that_never_ended_counts_unless_the_others_may_go_on_without_it(survivors, code):
    def start(options, environ):
        Path(environ["PUSHSUM_PROGRESS"], "0.over").touch()
        Path(environ["PUSHSUM_PROGRESS"], "1.runs").touch()
        return Ended(0, False)

    assert keep_running(start, ["-np", "2"], {}, 1, survivors=survivors) == code


def test_exit_code_0_of_a_launcher_that_has_lost_a_host_is_not_taken_for_a_good_end(capsys):
    """Open MPI's mpirun says in words that it has lost a host, and ends with 0."""

    def start(options, environ):
        Path(environ["PUSHSUM_PROGRESS"], "0.ended").touch()
        Path(environ["PUSHSUM_PROGRESS"], "1.begun").touch()
        return Ended(0, False)

    assert keep_running(start, ["-np", "2"], {}, 1) == 1
    said = at_once(capsys.readouterr().err)
    assert "the job ended with exit code 0 after 0 s, before its ranks had ended; started again (1 of 1)" in said


def test_restarts_that_are_used_up_end_with_the_last_code_and_a_line(capsys):
    assert keep_running(Job((137, 20), (9, 40)), ["-np", "2"], {}, 1) == 9
    assert "not started again: all 1 restarts are used up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("attempts", "starts"),
    [
        ([(1, None)] * 9, 2),  # an error in the script
        ([(1, 20), (1, 20), (1, 20), (1, 20)], 3),
        ([(1, 20), (1, None), (1, 40), (1, None), (1, None)], 5),
        ([(1, 20), (1, 40), (1, 20), (1, 40), (0, None)], 5),  # memory of a host was lost; then it went on
    ],
)
def test_two_attempts_in_a_row_that_save_nothing_new_are_the_end(attempts, starts, capsys):
    job = Job(*attempts)
    keep_running(job, ["-np", "2"], {}, 9)
    assert len(job.started) == starts
    assert (attempts[starts - 1][0] == 0) or "2 attempts in a row have saved nothing new" in capsys.readouterr().err


def test_where_ranks_say_nothing_of_what_they_save_a_long_attempt_is_progress(monkeypatch):
    monkeypatch.setattr(restarting, "LONG_S", 0.0)
    job = Job(*[(1, None)] * 4)
    assert keep_running(job, ["-np", "2"], {}, 3) == 1
    assert len(job.started) == 4


# ---------------------------------------------------------------------- hosts


def lost(monkeypatch, *names):
    monkeypatch.setattr(restarting, "answering", lambda hosts, agent, environ: [h for h in hosts if h not in names])


def test_job_goes_on_on_the_hosts_that_answer_with_as_many_ranks_as_they_have_slots_for(monkeypatch, capsys):
    lost(monkeypatch, "b")
    job = Job((1, 20), (0, None))
    assert keep_running(job, ["-np", "6", "--host", "a:2,b:2,c:2", "--map-by", "node"], {}, 3) == 0
    assert job.started[1][0] == ["-np", "4", "--host", "a:2,c:2", "--map-by", "node"]
    assert "started again (1 of 3) with 4 of 6 ranks, as b does not answer" in capsys.readouterr().err


def test_no_host_that_answers_is_the_end(monkeypatch, capsys):
    lost(monkeypatch, "a", "b")
    assert keep_running(Job((7, 20)), ["-np", "2", "-H", "a,b"], {}, 3) == 7
    assert "not started again: no host answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-n", "4", "-hosts", "a,b"], ["-n", "2", "-hosts", "a"]),
        (["-np", "4", "--host=a:4,b:4"], ["-np", "4", "--host=a:4"]),  # there was room to spare
        (["-np", "6", "-H", "a:1,b:1", "--oversubscribe"], ["-np", "3", "-H", "a:1", "--oversubscribe"]),
        (["-np", "4", "-N", "2", "-H", "a:8,b:8"], ["-np", "2", "-N", "2", "-H", "a:8"]),
        (["-np", "4", "--map-by", "ppr:2:node", "-H", "a,b"], ["-np", "2", "--map-by", "ppr:2:node", "-H", "a"]),
        (["-H", "a:3,b:3"], ["-H", "a:3"]),
        (["-np", "5", "-H", "a,a,b,b,b"], ["-np", "2", "-H", "a,a"]),
    ],
)
def test_options_without_a_lost_host(options, expected, tmp_path):
    assert hosts_of(options).keep(options, ["a"], tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("# mine\na slots=3 max_slots=8\nb slots=3\n", "3"),
        ("a:3\n\nb:3\n", "3"),
        ("a\nb\n", "3"),
    ],
)
def test_host_file_without_a_lost_host(text, ranks, tmp_path):
    file = tmp_path / "hosts"
    file.write_text(text)
    options = ["-np", "6", "--hostfile", str(file)]
    kept = hosts_of(options).keep(options, ["a"], tmp_path)
    assert kept[:3] == ["-np", ranks, "--hostfile"]
    assert Path(kept[3]).read_text() == next(line for line in text.splitlines(True) if line.startswith("a"))


@pytest.mark.parametrize("options", [["-np", "2"], ["-np", "2", "-H", "+n1"], ["-np", "2", "-f", "/nowhere"]])
def test_where_no_hosts_are_named_the_options_stay(options, tmp_path):
    assert hosts_of(options) is None


def test_hosts_are_tried_by_the_program_by_which_mpirun_reaches_them(tmp_path):
    agent = tmp_path / "agent"
    agent.write_text('#!/bin/sh\n[ "$1 $2" = "up true" ]\n')
    agent.chmod(0o755)
    assert answering(["up", "down", "localhost"], [str(agent)], {}) == ["up", "localhost"]
    assert answering(["up", "localhost"], ["/nowhere"], {}) == ["localhost"]
    assert agent_of(["--prtemca", "plm_ssh_agent", f"/nowhere : {agent}"], {}) == [str(agent)]
    assert agent_of(["-launcher-exec", str(agent)], {}) == [str(agent)]
    assert agent_of([], {"OMPI_MCA_plm_rsh_agent": f"{agent} -q"}) == [str(agent), "-q"]
    assert agent_of([], {})[0] == "ssh"
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    inside = {"SLURM_JOB_ID": "7", "PATH": str(tmp_path)}
    assert agent_of([], inside)[-1] == "--nodelist"
    assert agent_of(["-launcher-exec", str(agent)], inside) == [str(agent)]


def test_host_that_does_not_answer_in_time_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("pushsum_opt.cli.answering.SECONDS", 0.2)
    agent = tmp_path / "agent"
    agent.write_text("#!/bin/sh\nexec sleep 30\n")
    agent.chmod(0o755)
    assert answering(["slow"], [str(agent)], {}) == []


def test_addresses_of_this_machine_are_known():
    assert is_here("127.0.0.1")
    assert not is_here("192.0.2.1")
    assert not is_here("another")


# ---------------------------------------------------------------------- the command


def test_own_options_are_taken_from_among_mpiruns():
    assert take_own(["-np", "4", "--restarts=2", "--mca", "a", "b"]) == (
        Own(restarts=2),
        ["-np", "4", "--mca", "a", "b"],
    )
    for words in (["--restarts"], ["--restarts", "-1"], ["--restarts=x"]):
        with pytest.raises(ConfigurationError, match="--restarts"):
            take_own(words)


FLAKY = """#!/bin/sh
[ "$1" = "--version" ] && echo "mpirun (Open MPI) 5.0.11" && exit
echo "attempt $PUSHSUM_RESTARTS"
[ "$PUSHSUM_RESTARTS" = 2 ] && exit 0
echo $(( (PUSHSUM_RESTARTS + 1) * 20 )) > "$PUSHSUM_PROGRESS/0.saved"
kill -9 $$
"""


@pytest.fixture
def flaky(tmp_path, monkeypatch):
    mpirun = tmp_path / "mpirun"
    mpirun.write_text(FLAKY)
    mpirun.chmod(0o755)
    (tmp_path / "train.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pushsum_opt.cli.run.find_launcher", lambda environ: Launcher(str(mpirun), OPEN_MPI, "5.0.11"))
    return mpirun


def test_command_with_restarts_prints_each_command_and_each_end(flaky, capfd):
    assert main(["run", "--restarts", "3", "-np", "2", "train.py"]) == 0
    said = capfd.readouterr()
    assert said.out.splitlines() == ["attempt 0", "attempt 1", "attempt 2"]
    assert said.err.count("+ ") == 3
    assert "exit code 137 after 0 s, round 20 saved; started again (1 of 3)" in at_once(said.err)
    assert "--restarts" not in "".join(line for line in said.err.splitlines() if line.startswith("+ "))


def test_an_end_is_seen_whose_signal_another_thread_has_dropped(monkeypatch):
    """In a process of several threads the system gives it to any that has not blocked it, and there it is ignored."""
    monkeypatch.setattr(signal, "sigtimedwait", lambda signals, seconds: time.sleep(0.02))
    assert watch(["/bin/sh", "-c", "exit 7"], os.environ) == Ended(7, asked=False)


WAITS = """
import signal, sys
from pushsum_opt.cli import main, run
from pushsum_opt.cli.launcher import Launcher, OPEN_MPI
run.find_launcher = lambda environ: Launcher(sys.argv[1], OPEN_MPI, "5")
sys.exit(main(["run", "--restarts", "5", "-np", "2", "train.py"]))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_passes_through_and_ends_the_restarts(flaky, tmp_path, number, code):
    flaky.write_text("#!/bin/sh\ntrap 'exit 1' TERM INT\necho ready\nwhile :; do sleep 0.05; done\n")
    child = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(flaky)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    line = ""
    deadline = time.monotonic() + 30
    while "ready" not in line and time.monotonic() < deadline:
        line = child.stdout.readline()
    child.send_signal(number)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == code
    assert "started again" not in said
