"""Every message of this library that docs/questions.md quotes is one that the code has."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "questions.md"
FOREIGN = (
    "There are not enough slots available",  # Open MPI
    "mpirun has detected an attempt to run as root",
    "signal 9",
    "Default process group has not been initialized",  # torch
)
VALUE = "\0"  # stands for what the code puts into a message


def quoted() -> list[str]:
    """The messages that stand in bold at the beginnings of paragraphs."""
    heads = re.findall(r"^\*\*(.*?)\*\*", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = [" ".join(code.split()) for head in heads for code in re.findall(r"`([^`]+)`", head)]
    return [one for one in found if " " in one and one not in FOREIGN]


@cache
def messages() -> str:
    """All texts of the package, with VALUE in the place of what is put into them."""
    texts = []
    for file in (ROOT / "pushsum_opt").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(one.value) if isinstance(one, ast.Constant) else VALUE for one in node.values]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[-+.\d]*[a-z]", VALUE, node.value))
    return "\n".join(texts)


def as_pattern(fragment: str) -> str:
    """A number on the page may be one in the code, or a value."""
    return re.sub(r"\d(?:[\d\\.]*\d)?", lambda number: f"(?:{number[0]}|{VALUE})", re.escape(fragment))


def test_the_page_quotes_messages():
    assert len(quoted()) > 15


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_one_of_the_library(message):
    text = re.sub(r"^[A-Z]\w*Error: |^Peer\w+: ", "", message)
    fragments = [one.strip() for one in text.split("...") if len(one.strip()) > 1]
    assert fragments
    for fragment in fragments:
        assert re.search(as_pattern(fragment), messages()), f"not in the code: {fragment!r}"
