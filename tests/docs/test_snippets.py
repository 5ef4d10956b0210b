"""Every snippet of the README and of docs/ runs, and says what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from warm.python import FOR_EXAMPLES, warm_python

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
INSTALLS = {
    'pip install torch==2.13.0 -e ".[quickstart]" && pushsum run -np 4 examples/digits.py',
    'pip install torch==2.13.0 -e ".[quickstart]"',
    "pip install tox && tox p -o",
    "mpirun -np 256 python train.py",
}
"""Commands that other checks run: the environments install with them, and 256 ranks are for a cluster."""
SHORTER = {"--size 256 --size 4096": "--size 64 --limit 1e6 --start-limit 1e6"}
"""What is run in place of options that take minutes, or that time a test."""
LANGUAGES = {"python", "sh", "text", "diff"}
ENVIRONMENT = {
    **os.environ,
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMP_NUM_THREADS": "1",
}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of every fenced block, also of those inside lists."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [(language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)) for indent, language, text in found]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_names_its_language(page):
    for language, text in blocks(page):
        assert language in LANGUAGES, text


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_snippets_run_one_after_the_other(page, tmp_path):
    program = "\n".join(text for language, text in blocks(page) if language == "python")
    if not program:
        return
    script = tmp_path / "snippets.py"
    script.write_text(program)
    done = subprocess.run(
        [*warm_python(), str(script)], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]


@cache
def run(command: str) -> str:
    """Run a command in a shell, once for all pages; return what it said if it failed. Its ranks find torch imported."""
    if command.startswith("pushsum run "):
        warm = shlex.join(warm_python(*FOR_EXAMPLES))
        command = re.sub(r"^pushsum run -np \d+ ", rf"\g<0>{warm} ", command)
    done = subprocess.run(command, shell=True, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    return f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}" if done.returncode != 0 else ""


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_run(page, written):
    for language, text in blocks(page):
        for command in text.strip().splitlines() if language == "sh" else ():
            if command.strip() in INSTALLS:
                continue
            assert command.startswith(("pushsum ", "python ")), f"{page.name}: {command!r} is not run by anything"
            command = command.replace("docs/images/", "")
            for long, short in SHORTER.items():
                command = command.replace(long, short)
            command = re.sub(r"(--\w+ )(\S+\.(?:png|json))", rf"\1{written}/out_\2", command)
            failed = run(command)
            assert not failed, failed


def test_the_readme_gives_the_two_commands():
    commands = {text.strip() for language, text in blocks(ROOT / "README.md") if language == "sh"}
    assert 'pip install torch==2.13.0 -e ".[quickstart]" && pushsum run -np 4 examples/digits.py' in commands
    assert "pip install tox && tox p -o" in commands
    assert "pip install tox && tox p -o" in (ROOT / ".ci" / "run").read_text()


def anchors(page: Path) -> set[str]:
    """Return what GitHub calls the headings of a page."""
    without_code = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", without_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_to_a_file_and_a_heading_that_are_there(page):
    for path, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        target = page.parent / path if path else page
        assert target.exists(), f"{name(page)} links to {path}"
        assert not anchor or anchor in anchors(target), f"{name(page)} links to {path}#{anchor}"
