"""JSON that every reader takes: numbers that are not finite stand as null."""

from __future__ import annotations

import json
import math
from typing import Any


def finite(value: float) -> float | None:
    """The number, None where it is infinite or none at all."""
    value = float(value)
    return value if math.isfinite(value) else None


def strict(tree: Any) -> Any:
    """A copy of JSON-able things in which every float is finite or None."""
    if isinstance(tree, float):
        return finite(tree)
    if isinstance(tree, dict):
        return {key: strict(value) for key, value in tree.items()}
    return [strict(value) for value in tree] if isinstance(tree, list | tuple) else tree


def dumps(tree: Any, indent: int | None = None) -> str:
    """Text of what :func:`strict` gives.

    Raises:
        TypeError: something in it is no JSON.
    """
    return json.dumps(strict(tree), indent=indent, allow_nan=False)
