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
from functools import partial
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bench.common.errors import UserError
from bench.method import Rule, Start, Trainer
from bench.method.asking import IMAGES, Need
from bench.method.carried import nbytes
from bench.method.protect import ChangedInPlaceError
from bench.method.recorded import Recording, merge_stream
from bench.method.weights import Layout, Weights
from bench.offline.checkpoints import File, PeftLoRA, Source, open_source
from bench.registry import Registry
from bench.registry.resolved import Method
from bench.registry.spelling import parse
from bench.statistics import statistic
from bench.statistics.named import check_covers, laid_out

GRAD_SQ = "grad_sq"  #: the by-product of training that a user may have
VARIANCE = re.compile(r"(^|[._])(running|moving)_var(iance)?$")  #: how checkpoints call a variance of activations
IGNORE = "leave it out with --ignore REGEX (ignore=)"

Tensors: TypeAlias = Mapping[str, Tensor] | str | os.PathLike[str]  #: in memory, or a file (or adapter) on disk
NOTHING: Mapping[str, Any] = {}


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
    statistics: Mapping[str, Iterable[Tensors]] = NOTHING,
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
        statistics: any statistic of the harness (bench/statistics/) by its key; ``fishers`` and ``grams`` are short for
            ``statistics={"fisher": ..., "gram": ...}``.

    Raises:
        UserError: one line that says which tensor of which task is wrong, and how to mend it.
    """
    run = Offline(method, pretrained, tasks, fishers, grams, grad_sq, start, seed, only, ignore, plugins, statistics)
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
    scalars: dict[str, float | None]


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
        statistics: Mapping[str, Iterable[Tensors]] = NOTHING,
    ) -> None:  # fmt: skip
        self.method, self._seed = _asked(method, start, Registry.load(plugins)), seed
        self._only, self._ignore = _pattern(only, "only"), _pattern(ignore, "ignore")
        self.pretrained = open_source(pretrained, "pretrained")
        self.notes: list[str] = []
        self.carried_bytes = 0
        self._kept: dict[str, None] = {}  # integer tensors that a task has otherwise
        self.names = [name for name in sorted(self.pretrained.specs) if self._merged(name)]
        short = {"fisher": fishers, "gram": grams, GRAD_SQ: grad_sq}
        given = {**statistics, **{key: files for key, files in short.items() if files is not None}}
        for what, things in (("tasks", tasks), *given.items()):
            if isinstance(things, str | os.PathLike | Mapping):
                raise UserError(f"{what}: give a list, one entry a task")
        self._check_needs(given)
        self._tasks = self._opened(tasks, "task", self._check_task, self.pretrained)
        if isinstance(self._tasks, list):
            self._look_over(self._tasks, given)
        if not self.names:
            raise UserError(f"{self.pretrained.where}: no floating-point tensor to merge")
        self._given = {key: self._opened(given[key], key, partial(self._check_file, key)) for key in self._read}
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

    def _check_needs(self, given: Mapping[str, Iterable[Tensors]]) -> None:
        """What the rule declares that it reads, against what is given and what checkpoints can give."""
        rule, where = self.method.build()[1], f"method: {self.method.rule.key!r}"
        if rule.experts:
            raise UserError(f"{where} serves every task its own weights: there is nothing to merge")
        by_products = {wish.partition(":")[0] for wish in rule.record}
        for kind in sorted(by_products - {GRAD_SQ}):
            raise UserError(f"{where} needs {kind} of the training, which checkpoints do not have")
        for text in rule.needs:
            need = Need.parse(text)
            if need.key in IMAGES:
                raise UserError(f"{where} reads images, which checkpoints do not have; clmerge replay gives them")
            if need.elsewhere:
                raise UserError(
                    f"{where} needs the {need.key} at weights that only merging finds; clmerge replay computes it"
                )
        self._needed = {Need.parse(text).key for text in rule.needs} | (by_products & {GRAD_SQ})
        for key in sorted(self._needed):
            statistic(key) if key != GRAD_SQ else None  # a key that is none is told here
            if key not in given:
                raise UserError(f"{where} needs {said(key)}, one a task")
        # A rule that declares nothing may still ask: what it is given is opened, and read when it is asked for.
        undeclared = set(given) - {GRAD_SQ} if type(rule).needs is Rule.needs else set()
        self._read = sorted((set(given) & self._needed) | undeclared)
        self.notes += [f"{where} does not read {said(key)}" for key in given if key not in self._read]

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
        for what in self._read:
            if isinstance(given[what], Sequence) and len(given[what]) != len(tasks):
                raise UserError(
                    f"{said(what)}: {len(given[what])} for {len(tasks)} tasks; give one a task, in their order"
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

    def _check_file(self, key: str, source: Source) -> None:
        if key == GRAD_SQ:
            check_covers(source, self.pretrained, self.names)
        else:
            statistic(key).check_file(source, self.pretrained, self.names)

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
        theta_0, start, step = laid_out(self.pretrained, self._layout, self.dtype), self.method.start, None
        still = dict(theta_0.items())
        self._asked: set[str] = set()
        files = [chain(sources, repeat(None)) for sources in self._given.values()]
        known = map(self._recording, self._tasks, *files)
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
        except ChangedInPlaceError as error:
            raise UserError(str(error)) from None
        unread = [key for key in self._given if key not in self._needed | self._asked]
        self.notes += [f"method: {self.method.rule.key!r} does not read {said(key)}" for key in unread]
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
            UserError: a merged value is too large for that dtype, or a variance is negative.
        """
        merged = served.export()
        for name, tensor in merged.items():
            if not bool(torch.isfinite(tensor).all()):
                raise UserError(
                    f"merged tensor {name!r} does not fit into {tensor.dtype}; convert {self.pretrained.where}"
                )
        self._check_variances(merged)
        copied = [name for name in self.pretrained.specs if name not in merged]
        rest = {name: x.clone() for name, x in zip(copied, self.pretrained.tensors(copied), strict=True)}
        return {name: merged[name] if name in merged else rest[name] for name in self.pretrained.specs}

    def _check_variances(self, merged: Mapping[str, Tensor]) -> None:
        """BatchNorm takes the root of its running variance, so that one below zero makes every output NaN.

        A rule that adds scaled task vectors can take it there, where an average cannot.
        """
        variances = {name: tensor for name, tensor in merged.items() if VARIANCE.search(name)}
        for name, pretrained in zip(variances, self.pretrained.tensors(list(variances)), strict=True):
            below = int((variances[name] < 0).sum())
            if below and bool((pretrained >= 0).all()):
                raise UserError(
                    f"merged tensor {name!r} is a variance with {below} of {pretrained.numel()} entries below zero, so "
                    f"that the model would give NaN; use a rule that averages, a smaller scale, or {IGNORE}"
                )

    def metadata(self) -> dict[str, str]:
        """For the header of the file: the format, as the pretrained file has it."""
        told = self.pretrained.metadata if isinstance(self.pretrained, File) else {}
        return {"format": told.get("format", "pt")}  # safetensors writes two keys in any order: no two files equal

    @property
    def variant(self) -> str:
        """The rule in full: its start and options."""
        return self.method.variant.partition("+")[2]

    def _recording(self, task: Source, *files: Source | None) -> Recording:
        given = dict(zip(self._given, files, strict=True))
        for key, source in given.items():
            if source is None:
                raise UserError(f"{said(key)}: fewer than tasks; give one a task, in their order")
        counting = [n for n, s in task.specs.items() if not s.floating and self._selected(n)]
        pairs = zip(counting, task.tensors(counting), self.pretrained.tensors(counting), strict=True)
        self._kept |= {name: None for name, mine, theirs in pairs if not torch.equal(mine.to(theirs.device), theirs)}
        grad_sq = given.pop(GRAD_SQ, None)
        return Recording(
            laid_out(task, self._layout, self.dtype),
            _Read({key: source for key, source in given.items() if source}, self._layout, self.dtype, self._asked),
            {GRAD_SQ: [laid_out(grad_sq, self._layout, self.dtype, signed=False)]} if grad_sq else {},
        )


class _Read(Mapping[str, Any]):
    """Statistics by key, each read from its file when the rule asks for it."""

    def __init__(self, sources: dict[str, Source], layout: Layout, dtype: torch.dtype, asked: set[str]) -> None:
        self._sources, self._layout, self._dtype, self._asked = sources, layout, dtype, asked

    def __getitem__(self, key: str) -> Any:
        self._asked.add(key)
        return statistic(key).read_file(self._sources[key], self._layout, self._dtype)

    def __contains__(self, key: object) -> bool:
        return key in self._sources

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def said(key: str) -> str:
    """How errors name what a user can give, on the command line and in Python."""
    python = GRAD_SQ + "=" if key == GRAD_SQ else f"statistics[{key!r}]"
    return f"--{key.replace('_', '-')} ({python})"


def _asked(spelling: str, start: Start | None, registry: Registry) -> Method:
    written = parse(spelling, "method")
    if written.head is not None:
        raise UserError(
            f"method: {spelling!r}: weights are merged here, and nothing is classified; leave /{written.head} out"
        )
    return registry.resolve_rule(spelling, start or written.start or "pretrained", Trainer, where="method")


def _pattern(text: str | None, option: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise UserError(f"{option}: {text!r} is not a regular expression ({error})") from None
