"""The Task that a rule sees in a run: its statistics, images and heads, as far as it declared them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.common.cache import Store
from bench.common.seeds import numpy_rng, torch_rng
from bench.config.schema import ProtocolConfig
from bench.data.stream import Stream, TaskData
from bench.method import Trainer
from bench.method.asking import AsksByName
from bench.method.chain import handed
from bench.method.protect import unchanged
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.model.heads import Head, concatenate, new_head, training_heads
from bench.statistics import statistic
from bench.statistics.base import Place

_GRANTS = {
    "none": set[str](),
    "unlabelled": {"images"},
    "labelled": {"images", "labels"},
    "oracle": {"images", "labels", "validation"},
}


def directions(
    trainer: Trainer, backbone: Backbone, stream: Stream, current: TaskData, protocol: ProtocolConfig,
    earlier: Sequence[Head], run_seed: int, store: Store, start: Weights, served: Weights,
) -> Mapping[str, Tensor]:  # fmt: skip
    """What the trainer chooses before a task is trained; its task has a fresh head, and theta*_t is where it begins."""
    if type(trainer).directions is Trainer.directions:
        return {}
    head = training_heads(
        protocol.head, [current], backbone.dim, backbone.device, run_seed, stream.scenario, list(earlier)
    )
    task = LiveTask(
        "labelled", stream, current, backbone, protocol, [*earlier, head], run_seed, store, backbone.pretrained, start,
        served, start, {},
    )  # fmt: skip
    with unchanged(f"trainer {trainer.key}", handed(task)):
        return trainer.directions(task)


@dataclass
class LiveTask(AsksByName):
    """Task t of a run. ``data`` is what the plugin declared that it reads; more is refused."""

    data: str
    stream: Stream
    current: TaskData
    backbone: Backbone
    protocol: ProtocolConfig
    heads: Sequence[Head]  #: of tasks 1..t
    run_seed: int
    store: Store
    pretrained: Weights
    start: Weights
    served: Weights
    trained: Weights
    recorded: dict[str, list[Weights]]
    scalars: dict[str, float | None] = field(default_factory=dict)
    #: of statistics: what they cost alone, and what was spent now that some lay in the store
    seconds: dict[str, float] = field(default_factory=lambda: {"statistics": 0.0, "spent": 0.0})

    @property
    def t(self) -> int:
        """1 for the first task."""
        return self.current.t

    def for_trainer(self) -> LiveTask:
        """The same task as ``Trainer.learnt`` sees it: with labels, whatever the rule declared."""
        return replace(self, data="labelled")  # what is logged and timed goes into the same dicts

    def _need(self, what: str) -> None:
        if what not in _GRANTS[self.data]:
            raise PermissionError(f"a plugin that declares data={self.data!r} may not read {what} of the current task")

    def statistic(
        self, key: str, *, kind: str | None = None, samples: int | None = None, at: Weights | None = None
    ) -> Any:
        """On the current task at ``at`` (default theta*_t); kept in the store, read afresh for everyone who asks.

        Raises:
            PermissionError: the plugin did not declare the data that it reads.
            UserError: there is no such statistic.
            ValueError: it has no such kind.
        """
        asked = statistic(key)
        kind = asked.kinds[0] if kind is None else kind
        if kind not in asked.kinds:
            raise ValueError(f"unknown {key} kind {kind!r}; known: {', '.join(asked.kinds)}")
        self._need(asked.reads(kind))
        began = time.perf_counter()
        place = Place(
            self.backbone, at or self.trained, self.heads, self.stream, self.current, self.protocol, self.run_seed,
            kind, samples or self.protocol.fisher_samples,
        )  # fmt: skip
        cache_key = asked.cache_key(place)
        kept = self.store.load(key, cache_key)
        if kept is None:
            value = asked.compute(place)
            alone = time.perf_counter() - began
            tensors, header = asked.pack(value)
            self.store.save(key, cache_key, tensors, header | {"seconds": alone})
        else:
            value, alone = asked.unpack(*kept, place.at), kept[1]["seconds"]
        self.seconds["statistics"] += alone
        self.seconds["spent"] += time.perf_counter() - began
        return value

    def batches(self, size: int, steps: int, labelled: bool = False) -> Iterator[tuple[Tensor, Tensor | None]]:
        """``steps`` batches of training images (b, C, H, W) and, if labelled, columns within the current head (b,)."""
        self._need("labels" if labelled else "images")
        for part in self._parts("merge batches", self.current.train, size, steps):
            y = self.stream.train_columns[part] - self.current.columns.start if labelled else None
            yield self.stream.train_images[part], y

    def validation(self, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """``steps`` batches of validation images of all tasks seen, and columns among all classes seen."""
        self._need("validation")
        index = torch.cat([task.val for task in self.stream.tasks[: self.t]])
        for part in self._parts("validation batches", index, size, steps):
            yield self.stream.train_images[part], self.stream.train_columns[part]

    def _parts(self, purpose: str, index: Tensor, size: int, steps: int) -> Iterator[Tensor]:
        """``steps`` parts of one size, from one random order of the indices after another."""
        done, epoch = 0, 0
        while done < steps:
            rng = torch_rng(purpose, self.run_seed, self.current.content, epoch)
            order = torch.randperm(len(index), generator=rng).to(index.device)
            # Whole batches only: batch noise inflates gradient norms, so all batches of a rule have one size.
            for part in index[order].split(min(size, len(index))):
                if len(part) == min(size, len(index)) and done < steps:
                    yield part
                    done += 1
            epoch += 1

    def logits(self, weights: Weights, x: Tensor, heads: str | int = "current") -> Tensor:
        """Logits (b, classes) of images under ``weights``, on the training loss's scale; differentiable in them.

        Raises:
            ValueError: no such heads.
        """
        logits: Tensor = self._head(heads)(self.backbone.features(weights, x))
        return logits / self.protocol.train.temperature  # 1 is exact, forward and backward

    def _head(self, heads: str | int) -> Head:
        if isinstance(heads, int):
            return self.heads[heads - 1]
        if heads == "current":
            return self.heads[-1]
        if heads == "old":
            return concatenate(self.stream.scenario.open_heads(self.heads[:-1]))
        if heads == "seen":
            return concatenate(self.stream.scenario.open_heads(self.heads))
        if heads == "fresh":
            of = ("fresh", self.run_seed, self.current.content)
            return new_head(
                len(self.current.columns), self.backbone.dim, self.protocol.head.init_std, self.backbone.device, *of
            )
        raise ValueError(f"unknown heads {heads!r}; known: current, old, seen, fresh")

    def columns(self, t: int) -> range:
        """Task t's columns of the logits of heads "seen"."""
        return self.stream.tasks[t - 1].columns

    def accuracy(self, weights: Weights) -> float:
        """Fraction right among all classes seen, on the validation images of all tasks seen."""
        self._need("validation")
        with torch.inference_mode():
            index = torch.cat([task.val for task in self.stream.tasks[: self.t]])
            head = concatenate(self.stream.scenario.open_heads(self.heads))
            hits = sum(
                int(
                    (
                        head(self.backbone.features(weights, self.stream.train_images[part])).argmax(1)
                        == self.stream.train_columns[part]
                    ).sum()
                )
                for part in index.split(self.protocol.eval_batch)
            )
        return hits / len(index)

    def rng(self, purpose: str) -> np.random.Generator:
        """A random stream of this (run, task, purpose)."""
        return numpy_rng("rule", self.run_seed, self.current.content, purpose)
