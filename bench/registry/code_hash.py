"""Which version of the code made something: hashes of what code does, so that words and places change nothing.

A hash is over the statements of files and classes, each as its syntax tree without docstrings and imports, in no order:
a comment, a new docstring, a renamed or moved file, a function that went from one hashed file to another leave it as it
was; a constant or a line of arithmetic does not.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from bench.common.paths import ROOT
from bench.method import Plugin, Rule, Trainer

TOOLS = ("bench.method.tools.",)  #: what plugins share: it counts for those that import it


def code_of_class(cls: type) -> str:
    """Hash of a plugin class's code: the class, the functions, constants and helper classes of its file, and what the
    file imports of the harness's tools and of its own package. Other trainers and rules of the file and its
    ``method(...)`` lines do not count.
    """
    if cls in (Trainer, Rule):
        return "plain"  # the base classes' code is part of the harness's own hash
    module = sys.modules[cls.__module__]
    file = getattr(module, "__file__", None)
    if file is None:
        return _hash([])
    wanted = {c.__name__ for c in cls.__mro__}
    statements = []
    for node in _parsed(Path(file)).body:
        if isinstance(node, ast.ClassDef) and node.name not in wanted:
            other = getattr(module, node.name, None)
            if isinstance(other, type) and issubclass(other, Plugin):
                continue
        if not isinstance(node, ast.Expr):
            statements.append(ast.dump(node))
    for path in _imported(Path(file), module.__name__, module.__package__ or ""):
        statements += [ast.dump(node) for node in _parsed(path).body]
    return _hash(statements)


@cache
def code_of_modules(*files: str) -> str:
    """Hash of harness files (relative to ``bench/``; a folder stands for its ``*.py``)."""
    paths = [p for name in files for p in (sorted((ROOT / "bench" / name).glob("*.py")) or [ROOT / "bench" / name])]
    return _hash(ast.dump(node) for path in paths for node in _parsed(path).body)


def _hash(statements: Iterable[str]) -> str:
    """Of statements in no order: where one stands changes nothing that it does."""
    return hashlib.blake2b("\n".join(sorted(set(statements))).encode(), digest_size=8).hexdigest()


def _imported(file: Path, name: str, package: str) -> list[Path]:
    """The files that a plugin file imports, and those in turn: the harness's tools, and modules beside the plugin."""
    reached: dict[Path, None] = {}
    waiting = [(file, name, package)]
    while waiting:
        path, _, inside = waiting.pop()
        for wanted in _names_imported(path, inside):
            spec = _found(wanted)
            origin = Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None
            beside = origin is not None and file.parent in origin.parents and package.partition(".")[0] != "bench"
            if origin is None or origin in reached or origin == file or not (beside or wanted.startswith(TOOLS)):
                continue
            reached[origin] = None
            waiting.append((origin, wanted, spec.parent or "" if spec is not None else ""))
    return list(reached)


def _names_imported(path: Path, package: str) -> Iterator[str]:
    """Every module that a file may import, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # a module, or a name inside one


def _found(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None  # no module: a name inside one, or something that is not installed here


def _parsed(path: Path) -> ast.Module:
    return _bare(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=256)
def _bare(source: str) -> ast.Module:
    """The syntax tree without docstrings and without what says where names come from."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for block in ("body", "orelse", "finalbody"):
            statements = getattr(node, block, None)
            if isinstance(statements, list):
                setattr(node, block, [s for s in statements if not _says_where(s)])
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] if isinstance(first.value.value, str) else node.body
    return tree


def _says_where(node: ast.AST) -> bool:
    """Imports, what only a type checker imports, and ``__all__``."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    return isinstance(node, ast.Import | ast.ImportFrom)
