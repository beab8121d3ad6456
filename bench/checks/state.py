"""What a plugin keeps from task to task."""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from torch import Tensor

from bench.checks.subject import Failed, ServeTrained, Subject, same_bits
from bench.checks.world import merges, run
from bench.common.files import load_tensors, save_tensors
from bench.method.carried import nbytes, pack, unpack
from bench.method.weights import Weights


def resume(subject: Subject) -> str | None:
    """State saved and loaded at each task boundary changes no bit."""
    with tempfile.TemporaryDirectory() as folder:

        def reloaded(plugin: Any) -> Any:
            tensors, tree = pack(plugin)
            file = Path(folder) / "state.safetensors"
            save_tensors(file, tensors, {"tree": tree})
            kept = load_tensors(file)
            if kept is None:
                raise Failed("the state could not be written and read back")
            fresh = type(plugin)(**{name: getattr(plugin, name) for name in plugin.options()})
            fresh.begin(plugin.pretrained)
            unpack(fresh, kept[0], kept[1]["tree"], plugin.pretrained)
            return fresh

        if subject.method.rule is not ServeTrained:
            again = subject.served(subject.track(), between=reloaded)
            same_bits(subject.alone(), again, "the rule goes on differently from its saved state")
        if subject.method.trainer.states():
            whole, broken = subject.run(), run(subject.method, subject.worlds.lora, between=reloaded)
            same_bits(whole.trained, broken.trained, "the trainer goes on differently from its saved state")
    return None


def carried(subject: Subject) -> str | None:
    """Everything that is kept from task to task is state: it is saved, and its bytes count."""
    worlds, rule, sizes = subject.worlds, subject.rule(), []
    classes = (type(rule), subject.method.trainer)
    before = [_outside(cls) for cls in classes]
    for _ in merges(rule, worlds.lora, subject.track(), subject.method.start):
        sizes.append(nbytes(rule))
    left = subject.run()
    for plugin in (rule, left.trainer):
        known = {"pretrained", *plugin.options(), *plugin.states()}
        theta_0 = {_place(plugin.pretrained.vector)}
        found = {
            n: [x for x in reach(v) if _place(x) not in theta_0] for n, v in vars(plugin).items() if n not in known
        }
        told = ", ".join(f"self.{name} ({_bytes(kept):,} bytes)" for name, kept in found.items() if kept)
        if told:
            raise Failed(f"kept outside state(): {told}; make it a state, or delete it at the end of merge")
        holds, counted = _bytes(list(reach({n: getattr(plugin, n) for n in plugin.states()}))), nbytes(plugin)
        if holds > counted:
            raise Failed(f"state holds {holds:,} bytes, {counted:,} are counted (a view of a larger tensor?); clone it")
    for cls, known_before in zip(classes, before, strict=True):
        old = {_place(x) for x in known_before}
        new = [x for x in _outside(cls) if _place(x) not in old]
        if new:
            raise Failed(f"kept in the class or the module, outside state(): {_bytes(new):,} bytes")
    P = worlds.lora.backbone.pretrained.nbytes
    shares = [f"{(size + nbytes(left.trainer)) / P:.3g}" for size in sizes]
    return f"{shares[0]} P" if len(set(shares)) == 1 else ", ".join(shares) + " P: grows with tasks"


Held = Tensor | np.ndarray  #: what has bytes


def _outside(cls: type) -> list[Held]:
    """What the attributes of a plugin's class and of its module hold."""
    own = [c for c in cls.__mro__ if not c.__module__.startswith(("bench.", "builtins"))]
    spaces = [vars(c) for c in own] + [vars(sys.modules[c.__module__]) for c in own[:1]]
    kinds = (list, dict, set, tuple, Tensor, Weights, np.ndarray, FunctionType)
    return list(reach([v for space in spaces for n, v in space.items() if isinstance(v, kinds) and n[:2] != "__"]))


def reach(value: Any, seen: set[int] | None = None) -> Iterator[Held]:
    """All tensors and arrays that can be reached from a value, each memory once (``seen``: what was met already)."""
    seen = set() if seen is None else seen
    place = _place(value) if isinstance(value, Held) else id(value)
    if place in seen or isinstance(value, type):
        return
    seen.add(place)
    if isinstance(value, Held):
        yield value
        return
    inner: Iterable[Any] = getattr(value, "__dict__", {}).values()
    if isinstance(value, Weights):
        inner = [value.vector]
    elif isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        inner = value
    elif isinstance(value, FunctionType):
        inner = [*inspect.getclosurevars(value).nonlocals.values(), *(value.__defaults__ or ())]
    for part in inner:
        yield from reach(part, seen)


def _place(x: Held) -> int:
    return x.untyped_storage().data_ptr() if isinstance(x, Tensor) else x.ctypes.data


def _bytes(found: Iterable[Held]) -> int:
    return sum(x.untyped_storage().nbytes() if isinstance(x, Tensor) else x.nbytes for x in found)
