"""Merge checkpoints of any architecture by any rule, without a dataset: what ``clmerge merge`` does, in Python::

    from bench.offline.offline import merge
    served = merge("ties:density=0.1", pretrained, [task_1, task_2])
    model.load_state_dict(served)

Tasks are read one at a time, so that memory stays near what the rule itself carries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from bench.common.errors import UserError
from bench.method import Gram, Start, Trainer
from bench.method.carried import nbytes
from bench.method.recorded import Recording, merge_stream
from bench.method.weights import Layout, Weights
from bench.offline.checkpoints import File, PeftLoRA, Source, open_source
from bench.offline.needs import reads
from bench.registry import Registry
from bench.registry.resolved import Method
from bench.registry.spelling import SPELLING

#: how errors name what a user can give
SAID = {"fisher": "--fisher (fishers=)", "gram": "--gram (grams=)", "grad_sq": "--grad-sq (grad_sq=)"}
IGNORE = "leave it out with --ignore REGEX (ignore=)"

Tensors: TypeAlias = Mapping[str, Tensor] | str | os.PathLike[str]  #: in memory, or a file (or adapter) on disk


def merge(
    method: str,
    pretrained: Tensors,
    tasks: Iterable[Tensors],
    *,
    fishers: Iterable[Tensors] | None = None,
    grams: Iterable[Tensors] | None = None,
    grad_sq: Iterable[Tensors] | None = None,
    start: Start | None = None,
    seed: int = 0,
    only: str | None = None,
    ignore: str | None = None,
    plugins: Iterable[str | Path] = (),
) -> dict[str, Tensor]:
    """theta_hat_T: the pretrained model's tensors, merged, with its names, shapes, dtypes and order.

    Args:
        method: a spelling such as ``average``, ``ties:density=0.1`` or ``pm`` (whose rule is taken).
        pretrained: theta_0.
        tasks: theta*_1, theta*_2, ... under the same names; an iterator is asked for one at a time.
        fishers: of each task the diagonal Fisher at theta*_t, under the weights' names.
        grams: of each task X^T X of a layer's inputs under the weight's name, and the rows of X under ``<name>.rows``.
        grad_sq: of each task the running squared gradient of its training.
        start: where training of each task began; default: what the spelling says, else ``pretrained``.
        seed: of rules that draw.
        only: a regular expression; only tensors whose names it is found in are merged, the rest is theta_0's.
        ignore: a regular expression; tensors whose names it is found in are theta_0's.
        plugins: more plugin files and folders.

    Raises:
        UserError: one line that says which tensor of which task is wrong, and how to mend it.
    """
    run = Offline(method, pretrained, tasks, fishers, grams, grad_sq, start, seed, only, ignore, plugins)
    served = None
    for step in run.steps():
        served = step.served
    assert served is not None
    return run.export(served)


@dataclass(frozen=True)
class Step:
    """theta_hat_t and what the rule logged."""

    t: int
    served: Weights
    scalars: dict[str, float]


class Offline:
    """A merge that has been looked over: names, shapes, dtypes and what the rule needs, but no value yet.

    The arguments are those of :func:`merge`. A list of tasks is looked over whole, an iterator as it goes on.

    Attributes:
        method: the resolved method; its trainer means nothing here.
        names: of the tensors that are merged, sorted.
        dtype: what is computed in.
        notes: what a user should know, complete after the last step.
        carried_bytes: the most that crossed from one task to the next beyond theta_0 and the served weights.
    """

    def __init__(
        self, method: str, pretrained: Tensors, tasks: Iterable[Tensors], fishers: Iterable[Tensors] | None = None,
        grams: Iterable[Tensors] | None = None, grad_sq: Iterable[Tensors] | None = None, start: Start | None = None,
        seed: int = 0, only: str | None = None, ignore: str | None = None, plugins: Iterable[str | Path] = (),
    ) -> None:  # fmt: skip
        self.method, self._seed = _asked(method, start, Registry.load(plugins)), seed
        self._only, self._ignore = _pattern(only, "only"), _pattern(ignore, "ignore")
        self.pretrained = open_source(pretrained, "pretrained")
        self.notes: list[str] = []
        self.carried_bytes = 0
        self._kept: dict[str, None] = {}  # integer tensors that a task has otherwise
        self.names = [name for name in sorted(self.pretrained.specs) if self._merged(name)]
        given = {"tasks": tasks, "fisher": fishers, "gram": grams, "grad_sq": grad_sq}
        for what, things in given.items():
            if isinstance(things, str | os.PathLike | Mapping):
                raise UserError(f"{what}: give a list, one entry a task")
        self._kinds = self._check_needs(given)
        self._tasks = self._opened(tasks, "task", self._check_task, self.pretrained)
        if isinstance(self._tasks, list):
            self._look_over(self._tasks, given)
        if not self.names:
            raise UserError(f"{self.pretrained.where}: no floating-point tensor to merge")
        checks = {"fisher": self._check_statistic, "gram": self._check_gram, "grad_sq": self._check_statistic}
        self._given = {w: self._opened(given[w], w, check) for w, check in checks.items() if w in self._needed}
        specs = [self.pretrained.specs[name] for name in self.names]
        known = [self.pretrained, *(self._tasks if isinstance(self._tasks, list) else [])]
        wide = any(s.specs[n].dtype == "float64" for s in known for n in self.names if n in s.specs)
        self.dtype = torch.float64 if wide else torch.float32
        self._layout = Layout(tuple(self.names), tuple(s.shape for s in specs), tuple(s.dtype for s in specs))

    # ---- before anything is read -------------------------------------------------------------------------------
    def _selected(self, name: str) -> bool:
        return (not self._only or bool(self._only.search(name))) and not (self._ignore and self._ignore.search(name))

    def _merged(self, name: str) -> bool:
        spec = self.pretrained.specs[name]
        if self._selected(name) and not spec.floating and not spec.counting:
            where = f"{self.pretrained.where}: tensor {name!r}"
            raise UserError(f"{where} is {spec.dtype}, which is not merged; convert it or {IGNORE}")
        return self._selected(name) and spec.floating

    def _check_needs(self, given: Mapping[str, Any]) -> list[str]:
        """The kinds of Fisher that the rule asks for."""
        found, where = reads(self.method), f"method: {self.method.rule.key!r}"
        refused = {
            "images": "reads images, which checkpoints do not have; clmerge replay gives them",
            "snapshots": "needs snapshots of the training, which checkpoints do not have",
            "fisher elsewhere": "needs the Fisher at weights that only merging finds; clmerge replay computes it",
        }
        for what in (what for what in refused if what in found):
            raise UserError(f"{where} {refused[what]}")
        if self.method.rule.experts:
            raise UserError(f"{where} serves every task its own weights: there is nothing to merge")
        kinds = [name.removeprefix("fisher ") for name in sorted(found) if name.startswith("fisher ")]
        self._needed = ({"fisher"} if kinds else set()) | (found & {"gram", "grad_sq"})
        for what in ("fisher", "gram", "grad_sq"):
            if what in self._needed and given[what] is None:
                raise UserError(f"{where} needs {SAID[what]}, one a task")
            if what not in self._needed and given[what] is not None:
                self.notes.append(f"{where} does not read {SAID[what]}")
        return kinds

    def _opened(
        self, given: Iterable[Tensors] | None, what: str, check: Callable[[Source], None], base: Source | None = None
    ) -> Iterable[Source]:
        """Checked sources: a list of a list, else one after the other."""

        def opened(thing: Tensors, t: int) -> Source:
            source = open_source(thing, f"{what} {t}", base)
            check(source)
            return source

        # map, since a generator or zip would hold one task while it asks for the next
        found = map(opened, given or [], count(1))
        return list(found) if isinstance(given, Sequence) else found

    def _look_over(self, tasks: list[Source], given: Mapping[str, Any]) -> None:
        if not tasks:
            raise UserError("tasks: none given; name at least one")
        for what in sorted(self._needed):
            if isinstance(given[what], Sequence) and len(given[what]) != len(tasks):
                raise UserError(
                    f"{SAID[what]}: {len(given[what])} for {len(tasks)} tasks; give one a task, in their order"
                )
        if all(isinstance(task, PeftLoRA) for task in tasks):
            adapted = set[str]().union(*(task.specs for task in tasks))
            self.names = [name for name in self.names if name in adapted]

    def _check_task(self, task: Source) -> None:
        mine, theirs = self.pretrained.specs, task.specs
        missing = [n for n in sorted(mine) if n not in theirs and task.complete and self._selected(n)]
        unknown = [n for n in sorted(theirs) if n not in mine and self._selected(n)]
        if missing or unknown:
            told = [
                f"{word} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
                for word, names in (("lacks", missing), ("has besides", unknown))
                if names
            ]
            raise UserError(
                f"{task.where}: compared with {self.pretrained.where} it {' and '.join(told)}; "
                f"give checkpoints of one model, or {IGNORE}"
            )
        for name in (n for n in theirs if self._selected(n)):
            self._check_shape(task, name)
            if theirs[name].floating != mine[name].floating:
                raise self._differs(task, name, "dtype")

    def _check_statistic(self, source: Source) -> None:
        missing = [name for name in self.names if name not in source.specs]
        if missing:
            raise UserError(f"{source.where}: nothing for tensor {missing[0]!r} ({len(missing)} missing)")
        for name in self.names:
            self._check_shape(source, name)

    def _check_gram(self, source: Source) -> None:
        for name, spec in source.specs.items():
            weight = name.removesuffix(".rows")
            if weight not in self.pretrained.specs:
                raise UserError(f"{source.where}: {weight!r} is no weight of {self.pretrained.where}")
            if f"{weight}.rows" not in source.specs or weight not in source.specs:
                raise UserError(f"{source.where}: {weight!r} and '{weight}.rows' (rows of X) belong together")
            size = self.pretrained.specs[weight].shape[-1:]
            if name == weight and spec.shape not in (size, size * 2):
                raise UserError(f"{source.where}: {name!r} has shape {spec.shape}; X^T X would be {size * 2}")

    def _check_shape(self, source: Source, name: str) -> None:
        if source.specs[name].shape != self.pretrained.specs[name].shape:
            raise self._differs(source, name, "shape")

    def _differs(self, source: Source, name: str, what: str) -> UserError:
        pair = [getattr(s.specs[name], what) for s in (source, self.pretrained)]
        told = f"tensor {name!r} has {what} {pair[0]}, in {self.pretrained.where} {pair[1]}"
        return UserError(f"{source.where}: {told}; if it is a head, {IGNORE}")

    # ---- the merge ---------------------------------------------------------------------------------------------
    def steps(self) -> Iterator[Step]:
        """theta_hat_1, theta_hat_2, ...

        Raises:
            UserError: values that are not finite or, in a Fisher, negative; no task; what the rule cannot do.
        """
        _, rule = self.method.build()
        theta_0, start, step = self._weights(self.pretrained), self.method.start, None
        still = dict(theta_0.items())
        statistics = [chain(self._given.get(what, ()), repeat(None)) for what in ("fisher", "gram", "grad_sq")]
        known = map(self._recording, self._tasks, *statistics)
        try:
            for task in merge_stream(rule, theta_0, known, start, self._seed):
                raw = task.trained.nbytes * (
                    start == "previous" and not torch.equal(task.served.vector, task.trained.vector)
                )
                self.carried_bytes = max(self.carried_bytes, nbytes(rule) + raw)
                still = {n: still[n] for n, w in task.trained.items() if n in still and torch.equal(w, still[n])}
                step = Step(task.t, task.served, task.scalars)
                del task
                yield step
        except FloatingPointError as error:
            raise UserError(f"{error}; look at the task's values and the method's options") from None
        if step is None:
            raise UserError("tasks: none given; name at least one")
        if self._kept:
            self.notes.append(f"integer tensors that differ are the pretrained ones: {', '.join(self._kept)}")
        if still:
            self.notes.append(
                f"{len(still)} of {len(self.names)} merged tensors are the pretrained ones in every task: a rule that "
                "counts entries or norms over all tensors (TIES) counts them; --only (only=) leaves them out"
            )

    def export(self, served: Weights) -> dict[str, Tensor]:
        """All tensors of the pretrained model, merged ones under theirs, each in the pretrained dtype.

        Raises:
            UserError: a merged value is too large for that dtype.
        """
        merged = served.export()
        for name, tensor in merged.items():
            if not bool(torch.isfinite(tensor).all()):
                raise UserError(
                    f"merged tensor {name!r} does not fit into {tensor.dtype}; convert {self.pretrained.where}"
                )
        copied = [name for name in self.pretrained.specs if name not in merged]
        rest = {name: x.clone() for name, x in zip(copied, self.pretrained.tensors(copied), strict=True)}
        return {name: merged[name] if name in merged else rest[name] for name in self.pretrained.specs}

    def metadata(self) -> dict[str, str]:
        """For the header of the file: the format, as the pretrained file has it."""
        told = self.pretrained.metadata if isinstance(self.pretrained, File) else {}
        return {"format": told.get("format", "pt")}  # safetensors writes two keys in any order: no two files equal

    @property
    def variant(self) -> str:
        """The rule in full: its start and options."""
        return self.method.variant.partition("+")[2]

    def _recording(self, task: Source, fisher: Source | None, gram: Source | None, grad_sq: Source | None) -> Recording:
        for what, source in (("fisher", fisher), ("gram", gram), ("grad_sq", grad_sq)):
            if source is None and what in self._needed:
                raise UserError(f"{SAID[what]}: fewer than tasks; give one a task, in their order")
        counting = [n for n, s in task.specs.items() if not s.floating and self._selected(n)]
        pairs = zip(counting, task.tensors(counting), self.pretrained.tensors(counting), strict=True)
        self._kept |= {name: None for name, mine, theirs in pairs if not torch.equal(mine.to(theirs.device), theirs)}
        return Recording(
            self._weights(task),
            dict.fromkeys(self._kinds, self._weights(fisher, signed=False)) if fisher else {},
            grams=self._grams(gram) if gram else {},
            recorded={"grad_sq": [self._weights(grad_sq, signed=False)]} if grad_sq else {},
        )

    def _weights(self, source: Source, signed: bool = True) -> Weights:
        """The merged tensors end to end, filled one by one."""
        vector = torch.empty(0, dtype=self.dtype)
        sizes = self._layout.sizes
        for i, (name, tensor) in enumerate(zip(self.names, source.tensors(self.names), strict=True)):
            if i == 0:
                vector = torch.empty(sum(sizes), dtype=self.dtype, device=tensor.device)
                parts = vector.split(sizes)
            parts[i].copy_(tensor.reshape(-1))
            _check_values(parts[i], f"{source.where}: tensor {name!r}", signed)
        return Weights(vector, self._layout)

    def _grams(self, source: Source) -> dict[str, Gram]:
        names = [name for name in self.names if name in source.specs]
        found = {}
        for name, X in zip(names, source.tensors(names), strict=True):
            where, X = f"{source.where}: {name!r}", X.double()
            (rows,) = source.tensors([f"{name}.rows"])
            _check_values(X, where)
            diagonal = X if X.dim() == 1 else X.diagonal()
            if bool((diagonal < 0).any()) or not torch.allclose(
                X, X if X.dim() == 1 else X.mT, 0, 1e-3 * float(diagonal.max())
            ):
                raise UserError(f"{where} is not symmetric with a diagonal of at least 0, as X^T X is")
            if rows.numel() != 1 or not float(rows) >= 1 or float(rows) % 1:
                raise UserError(f"{where}.rows must be one whole number, at least 1")
            found[name] = Gram(X, int(rows))
        return found


def _check_values(x: Tensor, where: str, signed: bool = True) -> None:
    if not bool(torch.isfinite(x).all()):
        raise UserError(
            f"{where} holds {int((~torch.isfinite(x)).sum())} values that are not finite; mend or leave it out"
        )
    if not signed and bool((x < 0).any()):
        raise UserError(f"{where} holds negative values; it is a mean of squares")


def _asked(spelling: str, start: Start | None, registry: Registry) -> Method:
    match = SPELLING.fullmatch(spelling)
    spelled = cast(Start | None, match["start"] if match else None)
    if match and match["head"] is not None:
        raise UserError(
            f"method: {spelling!r}: weights are merged here, and nothing is classified; leave /{match['head']} out"
        )
    return registry.resolve_rule(spelling, start or spelled or "pretrained", Trainer, where="method")


def _pattern(text: str | None, option: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise UserError(f"{option}: {text!r} is not a regular expression ({error})") from None
