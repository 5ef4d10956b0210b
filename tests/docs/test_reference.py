"""The reference has an entry for everything public, and the docstrings that it prints say what is needed."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pushsum_opt as ps
from pushsum_opt.cli import COMMANDS
from pushsum_opt.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ENTRIES = [
    entry
    for page in sorted((DOCS / "reference").glob("*.md"))
    for entry in re.findall(r"^- `([^`]+)`$", page.read_text(encoding="utf-8"), re.MULTILINE)
]
NAMES = [entry for entry in ENTRIES if entry.startswith("ps.")]


def found(address: str) -> Any:
    thing: Any = ps
    for part in address.split(".")[1:]:
        thing = getattr(thing, part)
    return thing


def identity(address: str) -> str:
    """Return one text for one thing, under however many addresses it can be imported."""
    thing = found(address)
    return f"{thing.__module__}.{thing.__qualname__}" if hasattr(thing, "__qualname__") else address


def public_names() -> Iterator[str]:
    for name in ps.__all__:
        thing = getattr(ps, name)
        if isinstance(thing, ModuleType):
            yield from (f"ps.{name}.{member}" for member in thing.__all__)
        else:
            yield f"ps.{name}"


def takes_arguments(thing: Any) -> bool:
    """Tell whether users call this; exceptions and the values of a dataclass are made by the library."""
    made_here = inspect.isclass(thing) and (issubclass(thing, Exception) or dataclasses.is_dataclass(thing))
    return callable(thing) and not made_here


def members(owner: type) -> dict[str, Any]:
    """Return what a public class offers, without what it has from torch or Python."""
    ours = [base for base in owner.__mro__ if base.__module__.startswith(ps.__name__)]
    return {name: value for base in reversed(ours) for name, value in vars(base).items() if not name.startswith("_")}


def test_every_public_name_has_one_entry():
    wanted = {identity(name) for name in public_names()}
    entries = Counter(identity(name) for name in NAMES)
    assert sorted(wanted - set(entries)) == []
    assert sorted(set(entries) - wanted) == []
    assert [name for name, count in entries.items() if count > 1] == []


def test_every_environment_variable_has_one_entry():
    fields = sorted(f"PUSHSUM_{field.name.upper()}" for field in dataclasses.fields(Settings))
    assert sorted(entry for entry in ENTRIES if entry.startswith("PUSHSUM_")) == fields
    table = (DOCS / "sharp-bits.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(PUSHSUM_\w+)`", table, re.MULTILINE)) == fields


def test_every_environment_variable_that_the_package_names_has_an_entry():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "pushsum_opt").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"\bPUSHSUM_[A-Z_]*[A-Z]\b", text)}
    assert sorted(named - set(ENTRIES)) == []


def test_every_command_has_one_entry():
    commands = [entry for entry in ENTRIES if entry.startswith("pushsum ")]
    assert commands == [f"pushsum {command}" for command in COMMANDS]


def test_an_entry_is_a_name_a_variable_or_a_command():
    assert [entry for entry in ENTRIES if not re.match(r"ps\.|PUSHSUM_|pushsum ", entry)] == []


@pytest.mark.parametrize("name", NAMES)
def test_public_name_and_all_that_it_offers_is_documented(name):
    thing = found(name)
    if not callable(thing):
        return
    assert thing.__doc__, name
    offered = members(thing) if inspect.isclass(thing) else {}
    described = {member: value for member, value in offered.items() if callable(value) or isinstance(value, property)}
    assert [member for member in described if not inspect.getdoc(getattr(thing, member))] == []


@pytest.mark.parametrize("name", [name for name in NAMES if takes_arguments(found(name))])
def test_every_argument_is_explained_where_it_is_declared(name):
    thing = found(name)
    said = f"{thing.__doc__}\n{thing.__init__.__doc__ or ''}" if inspect.isclass(thing) else thing.__doc__
    arguments = inspect.signature(thing).parameters
    assert [argument for argument in arguments if not re.search(rf"\b{argument}\b", said)] == []


def test_every_page_has_one_line_in_the_index():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[[^\]]+\]\(([^)]+)\)", index, re.MULTILINE)
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert sorted([*listed, "README.md"]) == sorted(pages)
