"""The rooms of the library stand in one order, and every import goes downwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pushsum_opt"

# Top to bottom: a module imports only from rooms below its own (and from its own).
ROOMS = (
    "cli",
    "pytest_plugin",
    "testing",
    "optimizer",
    "wrapped",
    "algorithms",
    "checkpoint",
    "metric",
    "all_ranks",
    "collectives",
    "lending",
    "push_sum",
    "start",
    "gossip",
    "hosts",
    "faults",
    "local",
    "channel",
    "events",
    "observe",
    "transport",
    "memory",
    "cuda_aware",
    "buffers",
    "arguments",
    "combinations",
    "mixing",
    "graphs",
    "value_digest",
    "tensor_kinds",
    "interrupts",
    "job",
    "spares",
    "progress",
    "settings",
    "_torch_compat",
    "_deprecate",
    "installed",
    "environment",
    "processes",
    "clock",
    "log",
    "exit_codes",
    "errors",
)
SIBLINGS = (("transport", "memory"), ("transport", "graphs"), ("memory", "graphs"), ("observe", "transport"))
"""Rooms that stand side by side: neither imports the other, whatever their order above."""
NETWORKS = ("transport.loopback", "transport.mpi", "transport.torch_distributed")
CHOOSE_A_NETWORK = ("transport", "transport.opening", "transport.groups")
WITHOUT_TORCH = (
    "cli",
    "testing",
    "gossip",
    "observe",
    "channel",
    "transport",
    "cuda_aware",
    "graphs",
    "mixing",
    "job",
    "settings",
    "errors",
)


def test_every_import_goes_down_to_a_lower_room():
    assert list(upward_imports(PACKAGE)) == []


def test_rooms_that_stand_side_by_side_do_not_know_each_other():
    known = modules(PACKAGE)
    met = {
        tuple(sorted((room(name), room(target))))
        for name, path in known.items()
        for target in imports(name, path, known)
        if room(target)
    }
    assert [pair for pair in SIBLINGS if tuple(sorted(pair)) in met] == []


def test_no_network_knows_another_one_and_what_all_share_knows_none():
    known = modules(PACKAGE)
    found = []
    for name, path in known.items():
        own = network(name)
        for target in imports(name, path, known):
            if room(name) == "transport" and network(target) not in (None, own) and name not in CHOOSE_A_NETWORK:
                found.append(f"{name} imports {target}")
    assert found == []
    assert {network(name) for name in known} == {None, *NETWORKS}


def test_every_module_has_a_room():
    assert [name for name in modules(PACKAGE) if room(name) is None] == []


def test_no_files_import_each_other_in_a_circle():
    assert circles(PACKAGE) == []


def test_a_circle_of_files_is_found(tmp_path):
    (tmp_path / "errors.py").write_text("from . import world\n")
    (tmp_path / "world.py").write_text("def lazily():\n    from .settings import read\n")
    (tmp_path / "settings.py").write_text("from .errors import LaunchError\n")
    (tmp_path / "log.py").write_text("from .errors import LaunchError\n")
    assert circles(tmp_path) == [["errors", "settings", "world"]]


def test_an_import_upwards_is_found_even_inside_a_function(tmp_path):
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "__init__.py").write_text("from ..errors import GraphError\n")
    (tmp_path / "errors.py").write_text("def lazily():\n    from .graphs import Graph\n")
    (tmp_path / "local.py").write_text(f"from . import errors, optimizer\nimport {PACKAGE.name}.push_sum\n")
    (tmp_path / "optimizer.py").write_text("")
    (tmp_path / "push_sum.py").write_text("")
    assert sorted(upward_imports(tmp_path)) == [
        "errors imports graphs",
        "local imports optimizer",
        "local imports push_sum",
    ]


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_room_is_imported_without_torch_and_cupy(name):
    inside = [module for module in modules(PACKAGE) if room(module) == name]
    names = [f"{PACKAGE.name}.{module}" for module in inside]
    code = (
        "import importlib, sys, mpi4py\nmpi4py.rc.initialize = False\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'cupy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def upward_imports(package: Path) -> Iterator[str]:
    """Name every import that goes to a higher room, or that nothing in the package answers to."""
    known = modules(package)
    for importer, path in known.items():
        for imported in imports(importer, path, known):
            here, there = room(importer), room(imported)
            if here is None or there is None or ROOMS.index(there) < ROOMS.index(here):
                yield f"{importer} imports {imported}"


def circles(package: Path) -> list[list[str]]:
    """List the groups of files that import each other, directly or by way of others. Imports for types do not count."""
    known = modules(package)
    reached = {name: {name} for name in known}
    direct = {name: set(imports(name, path, known, types=False)) & known.keys() for name, path in known.items()}
    grown = True
    while grown:
        grown = False
        for name, targets in direct.items():
            more = set().union(targets, *(reached[target] for target in targets))
            grown = grown or not more <= reached[name]
            reached[name] |= more
    groups = {frozenset(b for b in known if a in reached[b] and b in reached[a]) for a in known}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def modules(package: Path) -> dict[str, Path]:
    """Find every module, named from the package on; the package itself and ``__main__`` only point into it."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in ("", "__main__"):
            found[name] = path
    return found


def room(module: str) -> str | None:
    """Return the most exact room that the module lies in."""
    rooms = [one for one in ROOMS if module == one or module.startswith(f"{one}.")]
    return max(rooms, key=len, default=None)


def network(module: str) -> str | None:
    """Return the part of ``transport`` for one network that the module lies in."""
    return next((one for one in NETWORKS if module == one or module.startswith(f"{one}.")), None)


def imports(importer: str, path: Path, known: dict[str, Path], *, types: bool = True) -> Iterator[str]:
    """List the modules of the package that a file imports, wherever in the file it does so.

    Args:
        types: count what is imported under ``if TYPE_CHECKING:``.
    """
    package = importer.split(".") if path.stem == "__init__" else importer.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            inside = [alias.name.split(".")[1:] for alias in node.names if alias.name.split(".")[0] == PACKAGE.name]
            yield from (".".join(parts) for parts in inside)
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            if node.level:
                base = [*package[: len(package) - node.level + 1], *parts]
            elif parts and parts[0] == PACKAGE.name:
                base = parts[1:]
            else:
                continue
            for alias in node.names:  # `from . import world` names a module, `from .world import rank` a thing in it
                member = ".".join([*base, alias.name])
                yield member if member in known else ".".join(base)
