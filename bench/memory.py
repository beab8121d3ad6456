"""What a plugin remembers across tasks, as named tensors and numbers: for resuming, and to count its bytes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bench.method import Plugin
from bench.weights import Weights


def pack(plugin: Plugin) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state fields as (tensors by name, JSON of everything else).

    Fields may hold ``Weights``, tensors, numbers, strings, None, and lists or dicts of these.

    Raises:
        TypeError: a field holds something else.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, Weights):
            tensors[name] = value.vector
            return {"weights": name}
        if isinstance(value, Tensor):
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, dict):
            # Named by place: keys with dots in them could give two tensors one name.
            return {"dict": [[k, walk(v, f"{name}.{i}")] for i, (k, v) in enumerate(value.items())]}
        if isinstance(value, list):
            return {"list": [walk(v, f"{name}.{i}") for i, v in enumerate(value)]}
        if value is None or isinstance(value, bool | int | float | str):
            return {"plain": value}
        raise TypeError(f"state {plugin.key}.{name} holds a {type(value).__name__}, which cannot be saved")

    return tensors, {name: walk(getattr(plugin, name), name) for name in plugin.states()}


def unpack(plugin: Plugin, tensors: dict[str, Tensor], tree: dict[str, Any], like: Weights) -> None:
    """Put back what :func:`pack` gave; ``like`` gives layout and device."""

    def build(node: Any) -> Any:
        ((kind, value),) = node.items()
        if kind == "weights":
            return Weights(tensors[value].to(like.vector.device), like.layout)
        if kind == "tensor":
            return tensors[value].to(like.vector.device)
        if kind == "dict":
            return {k: build(v) for k, v in value}
        if kind == "list":
            return [build(v) for v in value]
        return value

    for name in plugin.states():
        setattr(plugin, name, build(tree[name]))


def nbytes(plugin: Plugin, images: bool = False) -> int:
    """Bytes of all tensors that the plugin carries across a task boundary; ``images``: of its image buffers alone."""
    buffers = {name for name, field in plugin.states().items() if field.metadata["images"]}
    tensors = pack(plugin)[0].items()
    return sum(t.numel() * t.element_size() for name, t in tensors if not images or name.split(".")[0] in buffers)
