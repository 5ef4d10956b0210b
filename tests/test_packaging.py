"""What a checkout and an installation hold, and what importing the library does not do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import pytest

import pushsum_opt
from pushsum_opt.cli import COMMANDS

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {
    *("pushsum_opt", "tests", "examples", "docs", "setup.py", "tox.ini"),
    *("README.md", "LICENSE", ".gitignore", ".ci"),
}


def test_top_level_holds_nothing_but_what_was_agreed():
    if (ROOT / ".git").exists():
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        there = {line.split("/")[0] for line in files.splitlines()}
    else:  # an unpacked archive, with what tools have left in it
        ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
        names = {path.name for path in ROOT.iterdir()}
        there = {name for name in names if not any(fnmatch(name, pattern) for pattern in ignored)}
        there -= {"PKG-INFO", "setup.cfg"}  # setuptools writes them into every source archive
    assert there == TOP_LEVEL


def test_source_archive_holds_every_file_of_the_checkout(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of what it holds")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    for name in files:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path / "source", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        packed = {name.partition("/")[2] for name in opened.getnames()}
    assert sorted(files - packed) == []


def test_importing_the_library_starts_neither_mpi_nor_cuda_and_loads_no_torch():
    assert loaded_after("import pushsum_opt") == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_asking_a_command_for_help_loads_neither_torch_nor_mpi(command):
    code = f"from pushsum_opt.cli import main\ntry: main([{command!r}, '--help'])\nexcept SystemExit: pass"
    assert loaded_after(code) == set()


def test_every_public_name_can_be_loaded():
    missing = [name for name in pushsum_opt.__all__ if getattr(pushsum_opt, name, None) is None]
    assert missing == []


def test_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        pushsum_opt.no_such_name  # noqa: B018


def test_version_is_the_same_wherever_it_is_written():
    (written,) = re.findall(r'version="([^"]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert written == pushsum_opt.__version__


def test_types_are_shipped():
    assert (ROOT / "pushsum_opt" / "py.typed").exists()


def test_torch_is_required_in_an_open_range_and_pinned_by_no_extra():
    required = metadata.requires("pushsum-opt") or []
    torch = [one for one in required if re.match(r"torch\b", one)]
    assert len(torch) == 1
    assert re.fullmatch(r"torch\s*\(?>=[\d.]+\)?", torch[0])


def loaded_after(code: str) -> set[str]:
    """Run code in a new Python and return which of the heavy packages it has loaded."""
    report = "import sys\nprint(*{'torch', 'mpi4py', 'cupy'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())
