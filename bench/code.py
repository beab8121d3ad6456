"""Which version of the code made something: hashes of syntax trees, so that words and comments change nothing."""

from __future__ import annotations

import ast
import hashlib
import sys
from functools import cache, lru_cache
from pathlib import Path

from bench.method import Plugin, Rule, Trainer

ROOT = Path(__file__).resolve().parent.parent  #: of the repository


def code_of_class(cls: type) -> str:
    """Hash of a plugin class's code: the class, and the functions, constants and helper classes of its file;
    docstrings, comments, other trainers and rules and ``method(...)`` lines do not count.
    """
    module = sys.modules[cls.__module__]
    file = getattr(module, "__file__", None)
    if cls in (Trainer, Rule):
        return "plain"  # the base classes' code is part of the harness's own hash
    wanted = {c.__name__ for c in cls.__mro__}
    kept = []
    for node in _parsed(Path(file)).body if file else []:
        if isinstance(node, ast.ClassDef) and node.name not in wanted:
            other = getattr(module, node.name, None)
            if isinstance(other, type) and issubclass(other, Plugin):
                continue
        if isinstance(node, ast.Expr):
            continue
        kept.append(ast.dump(node))
    return hashlib.blake2b("\n".join(kept).encode(), digest_size=8).hexdigest()


@cache
def code_of_modules(*files: str) -> str:
    """Hash of harness files (relative to ``bench/``; a folder stands for its ``*.py``), docstrings out."""
    paths = [p for name in files for p in (sorted((ROOT / "bench" / name).glob("*.py")) or [ROOT / "bench" / name])]
    text = "\n".join(ast.dump(_parsed(path)) for path in paths)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _parsed(path: Path) -> ast.Module:
    return _without_docstrings(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=256)
def _without_docstrings(source: str) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return tree
