"""Which options of a command the function behind it reads, by its source."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from typing import Any


def unread(function: Callable[..., Any], options: set[str]) -> set[str]:
    """The options that a function accepts and does not read.

    A parameter is read where its name stands in the body. Options that come as ``**rest`` are read where their key is
    looked up in ``rest``, in the function or in those that ``rest`` is handed to.
    """
    kinds = {p.name: p.kind for p in inspect.signature(function).parameters.values()}
    rest = next((name for name, kind in kinds.items() if kind is inspect.Parameter.VAR_KEYWORD), None)
    named = options & (set(kinds) - {rest})
    ignored = {name for name in named if not _reads(function, name)}
    return ignored | {key for key in options - named if rest is None or not _reads_key(function, rest, key)}


def _body(function: Callable[..., Any]) -> Iterator[ast.AST]:
    """All nodes of a function's body, the signature and decorators left out."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(definition, ast.FunctionDef)
    for statement in definition.body:
        yield from ast.walk(statement)


def _reads(function: Callable[..., Any], name: str) -> bool:
    return any(
        isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load) for node in _body(function)
    )


def _reads_key(function: Callable[..., Any], rest: str, key: str) -> bool:
    """Whether ``key`` is looked up in the mapping ``rest``: by a subscript, by a tuple of keys, or further down."""
    for node in _body(function):
        if isinstance(node, ast.Subscript) and _is(node.value, rest):
            if isinstance(node.slice, ast.Constant) and node.slice.value == key:
                return True
        elif isinstance(node, ast.Tuple):  # for name in ("datasets", "tasks"): ... options[name]
            if any(isinstance(each, ast.Constant) and each.value == key for each in node.elts):
                return True
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and _is(node.func.value, rest):
                return True  # rest.items(): whatever is in it
            target = _called(function, node.func) if _is_handed_on(node, rest) else None
            if target is not None and _reads_handed_on(target, node, rest, key):
                return True
    return False


def _is(node: ast.AST | None, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _carries(node: ast.AST, rest: str) -> bool:
    """``rest``, ``rest | {...}`` and ``{**rest, ...}``."""
    if isinstance(node, ast.BinOp):
        return _carries(node.left, rest) or _carries(node.right, rest)
    if isinstance(node, ast.Dict):
        return any(key is None and _is(value, rest) for key, value in zip(node.keys, node.values, strict=True))
    return _is(node, rest)


def _is_handed_on(call: ast.Call, rest: str) -> bool:
    return any(_carries(value, rest) for value in [*call.args, *(each.value for each in call.keywords)])


def _reads_handed_on(target: Callable[..., Any], call: ast.Call, rest: str, key: str) -> bool:
    parameters = [name for name in inspect.signature(target).parameters if name != "self"]
    by_place = [parameters[place] for place, value in enumerate(call.args) if _carries(value, rest)]
    by_name = [each.arg for each in call.keywords if each.arg is not None and _carries(each.value, rest)]
    spread = any(each.arg is None and _carries(each.value, rest) for each in call.keywords)
    return any(_reads_key(target, name, key) for name in [*by_place, *by_name]) or (
        spread and not unread(target, {key})
    )


def _called(function: Callable[..., Any], node: ast.AST) -> Callable[..., Any] | None:
    """What a name in a function calls: its own imports, then those of its module; of a class, how it is made."""
    if not isinstance(node, ast.Name):
        return None
    found = inspect.unwrap(function).__globals__.get(node.id)
    for each in _body(function):
        if isinstance(each, ast.ImportFrom) and each.module and node.id in {alias.name for alias in each.names}:
            found = getattr(importlib.import_module(each.module), node.id)
    if inspect.isclass(found):
        return found.__init__  # type: ignore[misc,no-any-return]
    return found if inspect.isfunction(found) else None
