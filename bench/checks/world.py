"""A world that fits into a second: random images, a random transformer of two blocks, four steps of training a task."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common.cache import Store
from bench.config.schema import (
    FULL,
    AdapterKind,
    BackboneConfig,
    HeadConfig,
    ImageConfig,
    LoRAConfig,
    ProtocolConfig,
    TrainConfig,
)  # fmt: skip
from bench.data.dataset import Dataset
from bench.data.stream import Stream, TaskData
from bench.method import Rule, Start, Trainer
from bench.method.chain import Chain, check_finite
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.model.heads import Head
from bench.registry.resolved import Method
from bench.run.live_task import LiveTask, directions
from bench.run.train import Learnt, train

IMAGE = ImageConfig(size=8, channels=1, mean=[0.5], std=[0.25])
TASKS = ((0, 1), (2, 3), (4, 5))  #: classes of the tasks
PROTOCOL = ProtocolConfig(
    key="check",
    title="A world that fits into a second",
    backbone=BackboneConfig(
        model="vit_tiny_patch16_224",
        options={
            "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2,
            "class_token": False, "global_pool": "avg",
        },
    ),
    lora=LoRAConfig(rank=2),
    train=TrainConfig(epochs=2, batch=8, lr=0.05, head_lr=0.1),
    head=HeadConfig(init_std=0.1),
    fisher_samples=16,
    val_fraction=0.25,
)  # fmt: skip


class _Memory(Store):
    """Artifacts in memory, handed out as copies: a plugin that writes into one spoils nobody else's."""

    def __init__(self) -> None:
        super().__init__(Path())
        self._kept: dict[tuple[str, str], tuple[dict[str, torch.Tensor], dict[str, Any]]] = {}

    def load(self, kind: str, key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Copies of the tensors, and the header."""
        tensors, header = self._kept.get((kind, key), (None, {}))
        return None if tensors is None else ({n: t.clone() for n, t in tensors.items()}, header)

    def save(self, kind: str, key: str, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        """Keep copies."""
        self._kept[kind, key] = ({n: t.detach().clone() for n, t in tensors.items()}, header)


@lru_cache
def _dataset() -> Dataset:
    """Six classes of noisy random patterns: 8 training and 4 test images each."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, (6, 1, 8, 8))

    def draw(each: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(6), each)
        noisy = patterns[labels] + rng.normal(0, 60, (len(labels), 1, 8, 8))
        return noisy.clip(0, 255).astype(np.uint8), labels

    return Dataset("check", *draw(8), *draw(4), tuple("abcdef"), "check")


@dataclass(frozen=True)
class TaskModel:
    """What training left of one task: theta*_t, its head and by-products."""

    trained: Weights
    head: Head
    recorded: dict[str, list[Weights]]
    current: TaskData


@dataclass(frozen=True)
class Track:
    """Task models in order, and the stream that they belong to."""

    stream: Stream
    models: tuple[TaskModel, ...]

    def changed(self, change: Callable[[Weights], Weights]) -> Track:
        """The same with every theta*_t and snapshot changed."""
        models = []
        for model in self.models:
            kept = {k: [change(w) for w in ws] if k == "snapshots" else ws for k, ws in model.recorded.items()}
            models.append(replace(model, trained=change(model.trained), recorded=kept))
        return Track(self.stream, tuple(models))

    def to(self, world: World) -> Track:
        """The same models (by-products stay on the CPU) and tasks on another world's device."""
        stream, models = world.stream(tuple(range(len(self.models)))), []
        for model, task in zip(self.models, stream.tasks, strict=True):
            head = Head(model.head.weight.to(world.device), model.head.bias.to(world.device))
            models.append(replace(model, trained=model.trained.to(world.device), head=head, current=task))
        return Track(stream, tuple(models))


@dataclass
class World:
    """A stream of tiny tasks, and a tiny model: LoRA adapts its keys and values, another adapter what it names."""

    adapter: AdapterKind = PROTOCOL.adapter
    tasks: Sequence[tuple[int, ...]] = TASKS
    device: str = "cpu"
    _learnt: dict[Any, Learnt] = field(default_factory=dict)
    _streams: dict[Any, Stream] = field(default_factory=dict)

    @cached_property
    def protocol(self) -> ProtocolConfig:
        """:data:`PROTOCOL` with the adapter."""
        return PROTOCOL.model_copy(update={"adapter": self.adapter})

    @cached_property
    def backbone(self) -> Backbone:
        """Random weights, the same in every process."""
        made = Backbone(self.protocol, IMAGE, self.device)
        self._pristine = self._evaluation(made)
        return made

    def intact(self) -> bool:
        """Whether theta_0's features, buffers, hooks and modes are what they were when the model was made."""
        return "backbone" not in vars(self) or self._evaluation(self.backbone) == self._pristine

    def _evaluation(self, backbone: Backbone) -> str:
        with torch.inference_mode():
            features = backbone.features(backbone.pretrained, self.stream((0,)).test_images[torch.arange(4)])
        state = {n: t for n, t in backbone.module.state_dict().items() if t.is_floating_point()}
        modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in backbone.module.modules()]
        modes = torch.tensor(modules, device=features.device).float()
        return Weights.of({"features": features, "modes": modes, **state}).digest()

    @cached_property
    def store(self) -> Store:
        """Statistics are computed once for all rules."""
        return _Memory()

    def stream(self, order: tuple[int, ...]) -> Stream:
        """The tasks of these numbers, in this order, and no others."""
        if order not in self._streams:
            classes = [self.tasks[i] for i in order]
            self._streams[order] = Stream(_dataset(), len(order), 0, "test", 0.25, self.device, classes)
        return self._streams[order]

    def learn(
        self, stream: Stream, tasks: Sequence[TaskData], trainer: Trainer, start: Weights, record: tuple[str, ...],
        earlier: Sequence[Head] = (), served: Weights | None = None,
    ) -> Learnt:  # fmt: skip
        """A training; plain ones are kept, since every rule wants the same."""
        key = (*(task.content for task in tasks), start.digest(), record) if type(trainer) is Trainer else None
        if key is None or key not in self._learnt:
            served = self.backbone.pretrained if served is None else served
            chosen = directions(
                trainer, self.backbone, stream, tasks[-1], self.protocol, earlier, 0, self.store, start, served
            )
            found = train(
                self.backbone, stream, tasks, trainer, start, self.protocol, 0, record, earlier=earlier, served=served,
                directions=chosen,
            )  # fmt: skip
            if key is None:
                return found
            self._learnt[key] = found
        return self._learnt[key]

    def track(self, record: tuple[str, ...] = (), order: tuple[int, ...] = (0, 1, 2)) -> Track:
        """Task models trained independently from theta_0."""
        stream, models = self.stream(order), []
        for task in stream.tasks:
            learnt = self.learn(stream, [task], Trainer(), self.backbone.pretrained, record)
            models.append(TaskModel(learnt.weights, _copy(learnt.heads[0]), learnt.recorded, task))
        return Track(stream, tuple(models))

    def task(self, track: Track, t: int, start: Weights, served: Weights, theta_0: Weights) -> LiveTask:
        """Task t as a run gives it, on copies; all data is granted."""
        model = track.models[t - 1]
        return LiveTask(
            data="oracle", stream=track.stream, current=model.current, backbone=self.backbone, protocol=self.protocol,
            heads=[m.head for m in track.models[:t]], run_seed=0, store=self.store, pretrained=theta_0, start=start,
            served=served, trained=model.trained.detach(),
            recorded={kind: [w.detach() for w in kept] for kind, kept in model.recorded.items()},
        )  # fmt: skip


@dataclass
class Worlds:
    """Where methods are tried; kept from one method to the next, since trainings and statistics are shared."""

    lora: World = field(default_factory=World)
    full: World = field(default_factory=lambda: World(FULL))
    one_task: World = field(default_factory=lambda: World(tasks=((0, 1),)))
    one_class: World = field(default_factory=lambda: World(tasks=((0,), (1,))))

    def mend(self) -> None:
        """Make a model anew that a plugin has changed."""
        for world in vars(self).values():
            if not world.intact():
                del world.backbone


@contextmanager
def global_seed(seed: int) -> Iterator[list[str]]:
    """The global generators at a known place for the length of a block; then which of them were moved in it."""
    before = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
    moved: list[str] = []
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    known = _generators()
    try:
        yield moved
        now = _generators()
        moved += [name for name in known if now[name] != known[name]]
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def _generators() -> dict[str, bytes]:
    states = {"torch": torch.get_rng_state().tolist(), "numpy": np.random.get_state(), "random": random.getstate()}  # noqa: NPY002
    return {name: pickle.dumps(state) for name, state in states.items()}


def merges(
    rule: Rule,
    world: World,
    track: Track,
    start: Start,
    *,
    wrap: Callable[[LiveTask], Any] = lambda task: task,
    between: Callable[[Rule], Rule] = lambda rule: rule,
    seed: int = 0,
    moved: list[str] | None = None,
) -> Iterator[tuple[LiveTask, Weights]]:
    """Every task and what was served after it: task models merged one after the other, as a run does it.

    Args:
        rule: fresh; its state is begun here.
        world: that of the track.
        track: the task models.
        start: what the rule is told of where training began.
        wrap: what the rule sees instead of the task.
        between: applied to the rule at each task boundary.
        seed: of the global generators during a merge (no merge should depend on it).
        moved: filled with the names of the global generators that a merge drew from.
    """
    chain = _Watched(rule, start, world.backbone.pretrained.detach(), seed, wrap)
    for task in chain.tasks(range(1, len(track.models) + 1), partial(_task_of, chain, world, track)):
        if moved is not None:
            moved += chain.moved
        yield task, chain.answer
        chain.rule = between(chain.rule)


class _Watched(Chain):
    """The loop under the kit's eyes: the checks say in words of their own what is written into or not finite."""

    def __init__(
        self,
        rule: Rule,
        start: Start,
        theta_0: Weights,
        seed: int,
        wrap: Callable[[LiveTask], Any],
        trainer: Any = None,
    ) -> None:
        super().__init__(rule, start, theta_0, trainer)
        self.seed, self.wrap = seed, wrap

    def merge(self, task: LiveTask) -> Weights:
        """A copy of the answer, which is kept as it was given."""
        with global_seed(1000 * self.seed + task.t) as self.moved:
            self.answer = self.ask(self.wrap(task))
        served = self.answer.detach()
        if self.trainer is not None:
            check_finite(self.rule, served, task.t)
            self.trainer.learnt(task.for_trainer())
        return served


def _task_of(chain: Chain, world: World, track: Track, t: int, start: Weights) -> LiveTask:
    return world.task(track, t, start, chain.served, chain.pretrained)


@dataclass
class Run:
    """What a real run of two tasks left behind."""

    trainer: Trainer
    rule: Rule
    trained: list[Weights]
    served: list[Weights]
    untouched: bool  #: heads and backbone have the bits that they had before merging


def run(
    method: Method,
    world: World,
    *,
    seed: int = 0,
    between: Callable[[Any], Any] = lambda plugin: plugin,
) -> Run:
    """Train, merge, remember: the first two tasks of the world, as a run does it.

    Args:
        method: trainer, rule and start.
        world: of one task or more.
        seed: of the global generators (nothing should depend on it).
        between: applied to trainer and rule at each task boundary.
    """
    stream = world.stream(tuple(range(min(2, len(world.tasks)))))
    trainer, rule = method.build()
    chain = _Watched(rule, method.start, world.backbone.pretrained.detach(), seed, lambda task: task, trainer)
    left = Run(trainer, rule, [], [], True)
    heads: list[Head] = []
    bits: list[str] = []

    def learn(current: TaskData, start: Weights) -> LiveTask:
        seen = stream.tasks[: current.t] if trainer.data == "seen" else [current]
        with global_seed(1000 * seed + current.t):
            learnt = world.learn(stream, seen, left.trainer, start, rule.record, heads, chain.served)
        left.trained.append(learnt.weights.detach())
        heads[current.t - len(learnt.heads) :] = map(_copy, learnt.heads)
        bits[:] = _heads(heads)
        models = (
            TaskModel(left.trained[-1], head, learnt.recorded, task)
            for head, task in zip(heads, stream.tasks[: current.t], strict=True)
        )
        return world.task(Track(stream, tuple(models)), current.t, start, chain.served, chain.pretrained)

    for _ in chain.tasks(stream.tasks if trainer.data == "current" else stream.tasks[-1:], learn):
        left.served.append(chain.served)
        left.untouched &= bits == _heads(heads)
        chain.trainer, chain.rule = left.trainer, left.rule = between(left.trainer), between(left.rule)
    left.untouched &= world.intact()
    return left


def _copy(head: Head) -> Head:
    return Head(head.weight.clone(), head.bias.clone())


def _heads(heads: Sequence[Head]) -> list[str]:
    return [Weights.of({"w": h.weight, "b": h.bias}).digest() for h in heads]
