"""What a plugin remembers across tasks, as named tensors and numbers: for resuming, and to count its bytes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bench.method.api import Plugin
from bench.method.weights import Weights


def pack(plugin: Plugin) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state fields as (tensors by name, JSON of everything else).

    Fields may hold ``Weights``, tensors, numbers, strings, None, and lists or dicts of these.

    Raises:
        TypeError: a field holds something else.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, {name: _told(getattr(plugin, name), name, tensors, plugin.key) for name in plugin.states()}


# Not a closure: one that calls itself is a reference cycle, which keeps its tensors until the collector comes by.
def _told(value: Any, name: str, tensors: dict[str, Tensor], key: str) -> Any:
    """The JSON of one value; its tensors are put into ``tensors``."""
    if isinstance(value, Weights):
        tensors[name] = value.vector
        return {"weights": name}
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        # Named by place: keys with dots in them could give two tensors one name.
        return {"dict": [[k, _told(v, f"{name}.{i}", tensors, key)] for i, (k, v) in enumerate(value.items())]}
    if isinstance(value, list):
        return {"list": [_told(v, f"{name}.{i}", tensors, key) for i, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    raise TypeError(f"state {key}.{name} holds a {type(value).__name__}, which cannot be saved")


def unpack(plugin: Plugin, tensors: dict[str, Tensor], tree: dict[str, Any], like: Weights) -> None:
    """Put back what :func:`pack` gave; ``like`` gives layout and device."""
    for name in plugin.states():
        setattr(plugin, name, _built(tree[name], tensors, like))


def _built(node: Any, tensors: dict[str, Tensor], like: Weights) -> Any:
    """The value that :func:`_told` took apart."""
    ((kind, value),) = node.items()
    if kind == "weights":
        return Weights(tensors[value].to(like.vector.device), like.layout)
    if kind == "tensor":
        return tensors[value].to(like.vector.device)
    if kind == "dict":
        return {k: _built(v, tensors, like) for k, v in value}
    if kind == "list":
        return [_built(v, tensors, like) for v in value]
    return value


def nbytes(plugin: Plugin, images: bool = False) -> int:
    """Bytes of all tensors that the plugin carries across a task boundary; ``images``: of its image buffers alone."""
    buffers = {name for name, field in plugin.states().items() if field.metadata["images"]}
    tensors = pack(plugin)[0].items()
    return sum(t.numel() * t.element_size() for name, t in tensors if not images or name.split(".")[0] in buffers)
