"""The site that Sphinx builds of these pages: ``sphinx-build -W -b html docs BUILD_FOLDER``, or ``tox -e docs``.

The pages are plain Markdown, to be read on GitHub as they are. What only a site needs is added here, while it is built:

* the sidebar: the groups and pages of README.md, in its order;
* the reference: a list entry such as "- `ps.graphs.Ring`" becomes what the docstring says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import pushsum_opt as ps  # noqa: E402
from pushsum_opt import cli  # noqa: E402
from pushsum_opt.settings import Settings  # noqa: E402

project = "pushsum_opt"
author = "The pushsum_opt developers"
version = release = ps.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
source_suffix = {".md": "markdown"}
exclude_patterns = ["images"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"pushsum_opt {version}"
html_copy_source = False
html_show_sourcelink = False
maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

# Every reference into this library must lead somewhere; those to torch and others would need the network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!pushsum_opt\b).*")]

PAGE = re.compile(r"^\| \[([^\]]+)\]\(([\w/-]+)\.md\)", re.MULTILINE)
GROUP = re.compile(r"^## (\w+)$", re.MULTILINE)
ENTRY = re.compile(r"^- `(ps\.[\w.]+|PUSHSUM_\w+|pushsum \w+)`$", re.MULTILINE)


def setup(app: Any) -> None:
    app.connect("source-read", add_what_only_a_site_needs)
    app.connect("autodoc-process-docstring", list_references, priority=400)  # before napoleon, which has 500
    app.connect("autodoc-process-docstring", leave_colons_alone, priority=400)
    app.connect("missing-reference", find_where_a_name_is_documented)
    app.connect("build-finished", name_the_first_page_index)


def add_what_only_a_site_needs(app: Any, page: str, source: list[str]) -> None:
    if page == root_doc:
        source[0] += sidebar(source[0])
    elif page.startswith("reference/"):
        source[0] = ENTRY.sub(lambda found: documented(found[1]), source[0])


def sidebar(index: str) -> str:
    """Return the groups of pages that the tables of the index show, as tables of contents for the sidebar."""
    _, *parts = GROUP.split(index)
    groups = zip(parts[::2], parts[1::2], strict=True)
    return "".join(contents(name, PAGE.findall(table)) for name, table in groups)


def contents(caption: str, pages: list[tuple[str, str]]) -> str:
    lines = [f"{title} <{page}>" for title, page in pages]
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""])


def documented(entry: str) -> str:
    """Return what takes the place of one entry of the reference."""
    if entry.startswith("pushsum "):
        return f"### {entry}\n\n```text\n{help_of(entry.split()[1])}\n```\n"
    lines = variable(entry) if entry.startswith("PUSHSUM_") else directive(entry)
    return "\n".join(["```{eval-rst}", *lines, "```", ""])


def help_of(command: str) -> str:
    printed = io.StringIO()
    narrow = mock.patch.dict(os.environ, COLUMNS="80")
    with narrow, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    return printed.getvalue().rstrip()


def variable(name: str) -> list[str]:
    """Describe an environment variable by its field of Settings."""
    from sphinx.pycode import ModuleAnalyzer

    (field,) = (one for one in dataclasses.fields(Settings) if f"PUSHSUM_{one.name.upper()}" == name)
    said = ModuleAnalyzer.for_module(Settings.__module__).find_attr_docs()[Settings.__name__, field.name]
    default = {None: "not set", True: "1", False: "0"}.get(field.default, field.default)  # type: ignore[call-overload]
    return [f".. envvar:: {name}", "", *(f"   {line}".rstrip() for line in said), f"   Default: {default}.", ""]


def directive(name: str) -> list[str]:
    """Let autodoc document a public name under the address by which users import it."""
    found: Any = ps
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    address = f"{project}{name[2:]}"
    if not inspect.isclass(found):
        return [f".. {'autofunction' if inspect.isroutine(found) else 'autodata'}:: {address}", ""]
    lines = [f".. autoclass:: {address}", "   :members:", ""]
    return [lines[0], "   :show-inheritance:", ""] if issubclass(found, Exception) else lines


def list_references(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turn footnotes into a list: several docstrings stand on one page, and each counts its papers from 1."""
    lines[:] = [re.sub(r"(\[\d\])_", r"\1", line.replace(".. [", "*  [", 1)) for line in lines]


def leave_colons_alone(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking the words before a colon, in the first line about an attribute, as its type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def find_where_a_name_is_documented(app: Any, environment: Any, node: Any, content: Any) -> Any:
    """Resolve ``pushsum_opt.graphs.Graph``, which is documented as ``pushsum_opt.Graph``.

    A signature may name a type that is not public; it stays as text. A docstring may not.
    """
    from sphinx.util.nodes import make_refnode

    target = named(node.get("reftarget", ""))
    if target is None:
        return None
    for address, entry in environment.domains["py"].objects.items():
        if address.startswith(f"{target}.") or (target == named(address)):
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content)
    return content if stands_in_a_signature(node) else None


@functools.cache
def named(address: str) -> str | None:
    """Return the module and the name by which the thing at an address was defined; None if there is nothing."""
    module, *parts = address.split(".")
    if module != project:
        return None
    found: Any = ps
    for place, part in enumerate(parts):
        if inspect.ismodule(found) and not hasattr(found, part):
            with contextlib.suppress(ImportError):
                importlib.import_module(".".join([module, *parts[: place + 1]]))
        if not hasattr(found, part):
            return None
        found = getattr(found, part)
    return f"{found.__module__}.{found.__qualname__}" if hasattr(found, "__qualname__") else address


def stands_in_a_signature(node: Any) -> bool:
    from sphinx.addnodes import desc_signature

    while node is not None and not isinstance(node, desc_signature):
        node = node.parent
    return node is not None


def name_the_first_page_index(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.name == "html":
        shutil.copy(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))
