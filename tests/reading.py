"""Source text as trees, each parsed and walked once, and names in it by where they are from."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes_of(tree: ast.AST) -> list[ast.AST]:
    """As `ast.walk` finds them."""
    return list(ast.walk(tree))


def forget() -> None:
    """Millions of nodes are a burden to what collects garbage."""
    for known in (tree_of, nodes_of, names_used):
        known.cache_clear()


@cache
def names_used(tree: ast.AST) -> set[str]:
    """Full names of whatever a source imports or uses, whatever it calls them.

    torch.load is also `from torch import load as get`, `import torch as t; t.load` and `getattr(torch, "load")`, and
    builtins are builtins.eval and so on.
    A name bound in one place counts as bound everywhere, and only plain assignments of names are followed.
    """
    bound: dict[str, str] = {}
    found: set[str] = set()
    nodes = nodes_of(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            bound |= {alias.asname or alias.name.split(".")[0]: _first(alias) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found |= set(bound.values())
    for name, value in _assigned(nodes):
        if full := full_name(value, bound):
            bound[name] = full
    names = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)
    return found | {full for node in nodes if isinstance(node, names) and (full := full_name(node, bound))}


def full_name(node: ast.AST, bound: dict[str, str]) -> str | None:
    """The dotted name that an expression stands for, if it is one."""
    match node:
        case ast.Name(id=name, ctx=ast.Load()):
            return bound.get(name) or (f"builtins.{name}" if hasattr(builtins, name) else None)
        case ast.Attribute(value=value, attr=name):
            inner = full_name(value, bound)
            return inner and f"{inner}.{name}"
        case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(name)), *_]):
            inner = full_name(value, bound)
            return inner and f"{inner}.{name}"
        case ast.Subscript(value=ast.Name(id="__builtins__"), slice=ast.Constant(value=str(name))):
            return f"builtins.{name}"
    return None


def _first(alias: ast.alias) -> str:
    """Return what the name of an `import` stands for: without `as`, the package alone."""
    return alias.name if alias.asname else alias.name.split(".")[0]


def _assigned(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    for node in nodes:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value
        elif isinstance(node, ast.NamedExpr):
            yield node.target.id, node.value
