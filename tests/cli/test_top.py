"""``pushsum top`` shows what all ranks do, while a run goes on and afterwards, and marks what is remarkable."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from support.recorded import BEGAN, RecordedRun

import pushsum_opt as ps
from pushsum_opt.cli import main
from pushsum_opt.cli.top import watch
from pushsum_opt.installed import install_command
from pushsum_opt.observe.report.reading import Folder

rich = pytest.importorskip("rich.console")


def slow(rank, round):
    return 0.09 if rank == 2 else 0.05


def shown(folder, *, width=120, later=3.0, terminal=False, height=60, **options):
    """Return the lines that are printed, ``later`` seconds after the last rank wrote."""
    out = io.StringIO()
    console = rich.Console(file=out, width=width, height=height, force_terminal=terminal, color_system=None)
    seen = folder.look().seen
    watch(folder, console, 1.0, once=not terminal, now=lambda: seen + later, **options)
    return out.getvalue().splitlines()


def row(lines, rank):
    return next(line for line in lines if re.match(rf" *{rank} ", line))


def test_a_run_that_is_over_is_printed_once(tmp_path, capsys):
    RecordedRun(tmp_path, 4, own=slow).go(100).end()
    assert main(["top", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "train.py (0123456789abcdef): 4 ranks, OnePeerExponential(), synchronous" in lines[0]
    assert "round 99; a step takes 90.0 ms (median)" in lines[1]
    assert sum("ended" in line for line in lines) == 4


def test_the_slowest_and_the_most_waited_for_rank_are_marked(tmp_path):
    RecordedRun(tmp_path, 4, own=slow).go(100)
    lines = shown(Folder(tmp_path))
    assert "slowest, waited for most" in row(lines, 2)
    assert sum("slowest" in line for line in lines) == 1
    assert "90.0 ms  90.0 ms      0 %" in row(lines, 2)
    assert re.search(r"90\.0 ms  50\.0 ms     44 % +2 \(\d+ %\)", row(lines, 0))
    assert "- Rank 2 needs 90.0 ms for the own work of a step" in "\n".join(lines)


def test_nothing_is_marked_where_all_ranks_are_alike(tmp_path):
    RecordedRun(tmp_path, 4).go(100)
    lines = shown(Folder(tmp_path))
    assert not any("slowest" in line or "waited for" in line or "silent" in line for line in lines)


def test_the_figures_are_those_of_the_last_rows(tmp_path):
    RecordedRun(tmp_path, 4, own=lambda rank, round: 0.05 if round < 900 else 0.2).go(1000)
    assert "200 ms" in row(shown(Folder(tmp_path)), 0)


def test_ranks_that_are_silent_or_lost_are_marked(tmp_path):
    run = RecordedRun(tmp_path, 4).go(20)
    run.lose(1, ps.Loss((1,), 21, 0.75, 1, 0.25, 1.5))
    run.ranks.remove(3)
    run.go(2000)
    lines = shown(Folder(tmp_path))
    assert row(lines, 1).rstrip().endswith("lost")
    assert re.search(r"103 s +silent", row(lines, 3))
    assert "3 s" in row(lines, 0)


def test_columns_that_say_nothing_are_left_out_and_narrow_terminals_get_fewer(tmp_path):
    RecordedRun(tmp_path, 4, row=lambda rank, round: {"chunks_skipped_total": 3 * (rank == 1)}).go(50)
    wide, narrow = shown(Folder(tmp_path), width=140), shown(Folder(tmp_path), width=60)
    head = next(line for line in wide if "waits most for" in line)
    assert "skipped" in head
    assert "missed" not in head
    assert "host" in head
    assert all(len(line) <= 60 for line in narrow)
    head = next(line for line in narrow if "waiting" in line and "rank" in line)
    assert "host" not in head
    assert "step" in head


@pytest.mark.parametrize("ranks_per_host", [8, 64, 1])
def test_over_256_ranks_groups_are_shown_and_the_ten_worst(tmp_path, ranks_per_host):
    RecordedRun(
        tmp_path,
        264,
        own=lambda rank, round: 0.09 if rank == 200 else 0.05,
        host=lambda rank: f"node{rank // ranks_per_host}",
    ).go(20)
    lines = shown(Folder(tmp_path))
    assert any("groups" in line for line in lines)
    worst = lines[next(index for index, line in enumerate(lines) if "the 10 worst of 264" in line) + 2 :]
    assert row(worst, 200).rstrip().endswith("slowest, waited for most")
    assert len([line for line in worst if re.match(r" *\d+ ", line)]) == 10
    assert any("(200)" in line for line in lines)
    assert len(lines) < 60


def test_it_goes_on_until_the_run_ends(tmp_path):
    run = RecordedRun(tmp_path, 3).go(20)
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        run.go(10) if len(looks) < 3 else run.end()

    lines = shown(Folder(tmp_path), terminal=True, sleep=sleep)
    assert looks == [1.0] * 3
    text = "\n".join(lines)
    assert "round 19" in text
    assert "round 39" in text


def test_a_run_of_which_nothing_was_heard_for_long_is_printed_once(tmp_path):
    RecordedRun(tmp_path, 3).go(20)
    lines = shown(Folder(tmp_path), terminal=True, later=4000.0, sleep=None)
    assert sum("silent" in line for line in lines) == 3


def test_before_the_first_row_it_says_when_that_comes(tmp_path):
    RecordedRun(tmp_path, 3, every=50)
    assert "the first one comes after 50 rounds" in "\n".join(shown(Folder(tmp_path)))


def test_older_runs_in_the_folder_are_named(tmp_path, capsys):
    RecordedRun(tmp_path, 2, run="aaaa", began=BEGAN + 100).go(10).end()
    RecordedRun(tmp_path, 2, run="bbbb").go(20).end()
    assert main(["top", str(tmp_path), "--once"]) == 0
    assert "bbbb" in capsys.readouterr().err
    assert main(["top", str(tmp_path), "--once", "--run", "bbbb"]) == 0
    assert "round 19" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "said"), [([], "no metrics"), (["--interval", "0"], "--interval 0")])
def test_what_cannot_be_shown_is_an_error(tmp_path, capsys, more, said):
    assert main(["top", str(tmp_path), *more]) == 1
    assert said in capsys.readouterr().err


def test_without_rich_the_command_that_installs_it_is_named(tmp_path):
    program = (
        "import sys; sys.modules['rich'] = None\n"
        "from pushsum_opt.cli import main\n"
        f"sys.exit(main(['top', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert install_command("observe") in done.stderr
