"""Kinds of adapters, a file each: which weights training may change, and what stands for them while it does."""

from importlib import import_module
from typing import Any

from bench.model.adapters.adapter import Adapter


def adapter_of(kind: str) -> type[Adapter[Any]]:
    """The class of a kind: the one that its file defines."""
    file = import_module(f"{__name__}.{kind}")
    [cls] = (c for c in vars(file).values() if isinstance(c, type) and c.__module__ == file.__name__)
    assert issubclass(cls, Adapter)
    return cls
