"""Turns words of the command line into a graph."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

from .. import graphs
from ..errors import GraphError
from ..graphs.convert import as_graph

__all__ = ["named_graph"]

_MAKERS: dict[str, Any] = {
    name.lower(): maker
    for name, maker in ((name, getattr(graphs, name)) for name in graphs.__all__)
    if isinstance(maker, type) and issubclass(maker, graphs.Graph) and maker is not graphs.Graph
}
_MAKERS["from_edges"] = graphs.from_edges


def named_graph(text: str) -> graphs.Graph:
    """Return the graph that a text names.

    ``Ring`` or ``ring(peers=2)``: a family of :mod:`pushsum_opt.graphs`, in any case, with literals or other families
    as arguments. ``package.module:name`` or ``path/to/file.py:name``: a graph, a function or a list of edges there.

    Raises:
        GraphError: there is no such family, file or name, or the family takes other arguments.

    >>> named_graph("hierarchical(8, outer=Ring)")
    Hierarchical(8, outer=Ring())
    """
    where, colon, name = text.rpartition(":")
    if colon and name.isidentifier():
        return as_graph(_imported(where, name))
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        node = None
    if not isinstance(node, (ast.Name, ast.Call)):
        raise GraphError(f"--graph {text}: expected a family, such as Ring or 'KPeerExponential(2)', or file.py:name")
    return as_graph(_value(node, text))


def _value(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):
        return _made(node.id, [], {}, text)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        keywords = {word.arg: _value(word.value, text) for word in node.keywords if word.arg is not None}
        return _made(node.func.id, [_value(one, text) for one in node.args], keywords, text)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(one, text) for one in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise GraphError(f"--graph {text}: {ast.unparse(node)} is neither a literal nor a family of graphs") from None


def _made(name: str, arguments: list[Any], keywords: dict[str, Any], text: str) -> Any:
    maker = _MAKERS.get(name.lower())
    if maker is None:
        known = ", ".join(one.__name__ for one in _MAKERS.values())
        raise GraphError(f"--graph {text}: there is no family {name}; expected one of {known}, or file.py:name")
    try:
        bound = inspect.signature(maker).bind(*arguments, **keywords)
    except TypeError as error:
        words = ", ".join(map(_without_type, inspect.signature(maker).parameters.values()))
        raise GraphError(f"--graph {text}: {error}; expected {maker.__name__}({words})") from None
    return maker(*bound.args, **bound.kwargs)


def _without_type(parameter: inspect.Parameter) -> str:
    return str(parameter.replace(annotation=inspect.Parameter.empty))


def _imported(where: str, name: str) -> Any:
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            if "" not in sys.path:
                sys.path.insert(0, "")  # as `python -m` does
            module = importlib.import_module(where)
    except (ImportError, FileNotFoundError) as error:
        raise GraphError(f"--graph {where}:{name}: {error}") from None
    if not hasattr(module, name):
        raise GraphError(f"--graph {where}:{name}: {where} has no {name}")
    return getattr(module, name)
