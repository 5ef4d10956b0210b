"""What docs/conf.py adds to the pages when a site is made of them. Sphinx itself runs in ``tox -e docs``."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from pushsum_opt.cli import COMMANDS

DOCS = Path(__file__).resolve().parents[2] / "docs"

spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
conf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conf)


def test_the_sidebar_has_the_groups_of_the_index_and_every_page_once():
    sidebar = conf.sidebar((DOCS / "README.md").read_text(encoding="utf-8"))
    captions = [line.split()[1] for line in sidebar.splitlines() if line.startswith(":caption:")]
    assert captions == ["Start", "Adopt", "Run", "Understand", "Contribute", "Reference"]
    linked = [line.partition("<")[2].rstrip(">") for line in sidebar.splitlines() if line.endswith(">")]
    pages = [page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")]
    assert sorted([*linked, conf.root_doc]) == sorted(pages)


@pytest.mark.parametrize(
    ("entry", "lines"),
    [
        ("ps.graphs.Ring", [".. autoclass:: pushsum_opt.graphs.Ring", "   :members:"]),
        ("ps.errors.PeerTimeout", [".. autoclass:: pushsum_opt.errors.PeerTimeout", "   :show-inheritance:"]),
        ("ps.average", [".. autofunction:: pushsum_opt.average"]),
        ("ps.checkpoint.REQUEUE", [".. autodata:: pushsum_opt.checkpoint.REQUEUE"]),
    ],
)
def test_an_entry_becomes_what_the_docstring_says(entry, lines):
    source = [f"before\n\n- `{entry}`\n\nafter"]
    conf.add_what_only_a_site_needs(None, "reference/page", source)
    assert source[0].splitlines()[2 : 3 + len(lines)] == ["```{eval-rst}", *lines]


def test_entries_are_left_alone_on_pages_that_are_no_reference():
    source = ["- `ps.graphs.Ring`"]
    conf.add_what_only_a_site_needs(None, "graphs", source)
    assert source == ["- `ps.graphs.Ring`"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_is_printed_in_narrow_lines(command):
    columns = os.environ.get("COLUMNS")
    assert conf.documented(f"pushsum {command}").startswith(
        f"### pushsum {command}\n\n```text\nusage: pushsum {command}"
    )
    assert os.environ.get("COLUMNS") == columns


def test_a_name_is_found_under_every_address_that_it_has():
    assert conf.named("pushsum_opt.graphs.Graph") == conf.named("pushsum_opt.Graph") is not None
    assert conf.named("pushsum_opt.graphs.NoSuchGraph") is None
    assert conf.named("torch.Tensor") is None


@pytest.mark.parametrize(("what", "first"), [("attribute", ".."), ("property", ".."), ("method", "k: the round.")])
def test_words_before_a_colon_are_no_type(what, first):
    lines = ["k: the round."]
    conf.leave_colons_alone(None, what, "name", None, None, lines)
    assert lines[0] == first
    assert lines[-1] == "k: the round."


def test_papers_are_listed_and_not_linked():
    lines = ["Exact [1]_ [2]_.", "", ".. [1] Ying (2021).", "   NeurIPS."]
    conf.list_references(None, "class", "name", None, None, lines)
    assert lines == ["Exact [1] [2].", "", "*  [1] Ying (2021).", "   NeurIPS."]
