"""What a plugin reads and writes besides what it is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from bench.checks.subject import Failed, Subject, need_rule, same_bits
from bench.checks.world import IMAGE, merges, run
from bench.method import Task, Trainer
from bench.method.asking import IMAGES, AsksByName, Need
from bench.method.carried import pack
from bench.method.weights import Weights
from bench.run.live_task import LiveTask
from bench.statistics import statistic


def seed(subject: Subject) -> str | None:
    """Equal seeds give equal bits, and the global generators are neither read nor moved."""
    track, worlds, start, moved = subject.track(), subject.worlds, subject.method.start, list[str]()
    again = [w for _, w in merges(subject.rule(), worlds.lora, track, start, seed=1, moved=moved)]
    if moved:
        raise Failed(f"merge draws from the global generator of {moved[0]}; draw from task.rng(purpose)")
    same_bits(again, subject.alone(), "merging twice gives other bits")
    if subject.method.trainer is not Trainer:
        other, one = run(subject.method, worlds.lora, seed=1), subject.run()
        what = "training depends on a global generator (draw from the rng given) or gives other bits when repeated"
        same_bits(other.trained, one.trained, what)
    return None


class _Strict:
    """Nothing but the members of :class:`bench.method.Task`, and no more data than declared."""

    _members = frozenset(n for n in {*vars(Task), *Task.__annotations__} if n[0] != "_")

    def __init__(self, task: LiveTask) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        if name not in self._members:
            raise AttributeError(f"task.{name} is read, which is no member of Task and not there offline")
        return getattr(self._task, name)


class _Noted(LiveTask):
    """Notes what is asked for: data that has to be granted, and what ``needs`` should declare."""

    asked: set[str]
    read: set[Need]

    def _need(self, what: str) -> None:
        self.asked.add(what)
        super()._need(what)

    def statistic(self, key: str, *, kind: str | None = None, samples: int | None = None, at: Any = None) -> Any:
        """Noted by its kind, the default one by its name."""
        of_kind = statistic(key).kinds[0] if kind is None else kind
        self.read.add(Need(key, of_kind, at is not None and at is not self.trained))
        return super().statistic(key, kind=kind, samples=samples, at=at)

    def batches(self, size: int, steps: int, labelled: bool = False) -> Iterator[Any]:
        """Noted when it is called."""
        self.read.add(Need("images"))
        return super().batches(size, steps, labelled)

    def validation(self, size: int, steps: int) -> Iterator[Any]:
        """Noted when it is called."""
        self.read.add(Need("validation"))
        return super().validation(size, steps)

    def accuracy(self, weights: Weights) -> float:
        """It reads validation images."""
        self.read.add(Need("validation"))
        return super().accuracy(weights)


def _noted(task: LiveTask, data: str, asked: set[str], read: set[Need]) -> _Noted:
    noted = _Noted(**{f: getattr(task, f) for f in LiveTask.__dataclass_fields__} | {"data": data})
    noted.asked, noted.read = asked, read
    return noted


def data(subject: Subject) -> str | None:
    """Images, labels and validation images only where declared, and no image kept but in state(images=True)."""
    need_rule(subject)
    rule, asked = subject.rule(), set[str]()

    def strict(task: LiveTask) -> _Strict:
        return _Strict(_noted(task, rule.reads, asked, set()))

    for _ in merges(rule, subject.worlds.lora, subject.track(), subject.method.start, wrap=strict):
        pass
    shape = (IMAGE.channels, IMAGE.size, IMAGE.size)
    for plugin in (rule, subject.run().trainer):
        flagged = {n for n, f in plugin.states().items() if f.metadata["images"]}
        for name, tensor in pack(plugin)[0].items():
            if tuple(tensor.shape[-3:]) == shape and name.split(".")[0] not in flagged:
                raise Failed(f"state {name} holds images; declare them: state(..., images=True)")
    declared = {"unlabelled": "images", "labelled": "labels", "oracle": "validation"}.get(rule.reads)
    return f"declares {rule.reads!r}, asked for no {declared} here" if declared and declared not in asked else None


def needs(subject: Subject) -> str | None:
    """What a rule reads of a task besides weights and by-products, it declares: statistics and images."""
    need_rule(subject)
    rule, read = subject.rule(), set[Need]()
    declared = {Need.parse(text) for text in rule.needs}
    for need in declared:
        if need.key not in IMAGES and (need.kind or statistic(need.key).kinds[0]) not in statistic(need.key).kinds:
            raise Failed(f"needs declares {need}, but {need.key} has no such kind")
    for _ in merges(
        rule, subject.worlds.lora, subject.track(), subject.method.start,
        wrap=lambda task: _noted(task, "oracle", set(), read),
    ):  # fmt: skip
        pass
    hidden = sorted(str(need) for need in read - declared if replace(need, kind="") not in declared)
    if hidden:
        raise Failed(f"reads {', '.join(hidden)} of the task, which its needs do not declare")
    return ", ".join(sorted(map(str, declared))) or None


class _Witness(AsksByName):
    """Remembers every tensor that the task gives, with its bits."""

    def __init__(self, task: LiveTask, given: list[tuple[str, Tensor, bytes]]) -> None:
        self._task, self._given = task, given

    def _note(self, name: str, value: Any) -> Any:
        found = {name: value}
        if isinstance(value, dict):
            found = {f"{name}[{k!r}]": v for k, v in value.items()}
        for label, each in found.items():
            for part in each if isinstance(each, list) else [each]:
                part = part.vector if isinstance(part, Weights) else part
                if isinstance(part, Tensor):
                    self._given.append((label, part, _bits(part)))
        return value

    def batches(self, *args: Any, **options: Any) -> Iterator[Any]:
        """Noted one by one."""
        for x, y in self._task.batches(*args, **options):
            yield self._note("an image batch", x), self._note("labels", y)

    def statistic(self, key: str, **asked: Any) -> Any:
        """Noted tensor by tensor."""
        value = self._task.statistic(key, **asked)
        for tensor in statistic(key).pack(value)[0].values():
            self._given.append((f"{key}()", tensor, _bits(tensor)))
        return value

    def __getattr__(self, name: str) -> Any:
        return self._note(f"task.{name}", getattr(self._task, name))


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def inputs(subject: Subject) -> str | None:
    """Nothing that a task holds or gives is written into, nor what was served before."""
    need_rule(subject)
    given: list[tuple[str, Tensor, bytes]] = []

    def witness(task: LiveTask) -> _Witness:
        seen = _Witness(task, given)
        for name in ("pretrained", "start", "served", "trained", "recorded"):
            getattr(seen, name)
        for name in ("train_images", "train_columns"):
            given.append((f"the stream's {name}", getattr(task.stream, name), _bits(getattr(task.stream, name))))
        return seen

    rule, worlds = subject.rule(), subject.worlds
    for t, (_, served) in enumerate(merges(rule, worlds.lora, subject.track(), subject.method.start, wrap=witness), 1):
        given.append((f"theta_hat_{t}", served.vector, _bits(served.vector)))
        for name, tensor, bits in given:
            if _bits(tensor) != bits:
                raise Failed(f"{name} was written into by task {t}'s merge; make a new one")
    return None
