"""The Task that a rule sees in a run: its statistics, images and heads, as far as it declared them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.common.cache import Store, key_of
from bench.common.seeds import numpy_rng, torch_rng
from bench.config.schema import ProtocolConfig
from bench.data.stream import Stream, TaskData
from bench.method import Gram
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.model.heads import Head, concatenate, new_head
from bench.registry.code_hash import code_of_modules
from bench.run.statistics import LABELLED, PER_SAMPLE, balanced_sample, diagonal_fisher, gram

_GRANTS = {
    "none": set[str](),
    "unlabelled": {"images"},
    "labelled": {"images", "labels"},
    "oracle": {"images", "labels", "validation"},
}


@dataclass
class LiveTask:
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
    scalars: dict[str, float] = field(default_factory=dict)
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

    def fisher(self, kind: str = "empirical", at: Weights | None = None) -> Weights:
        """Diagonal Fisher (P,) of the current head's loss at ``at`` (default theta*_t), kept in the store."""
        self._need("labels" if kind in LABELLED else "images")
        began = time.perf_counter()
        at = at or self.trained
        head, count = self.heads[-1], self.protocol.fisher_samples
        place = [
            self.current.content,
            len(self.current.train),
            kind,
            count,
            self.run_seed,
            self.protocol.train.temperature,
            *([] if kind in PER_SAMPLE[:2] else [self.protocol.train.batch]),
        ]
        key = key_of("fisher", at.digest(), head.digest(), place, code_of_modules("run/statistics.py"))
        kept = self.store.load("fisher", key)
        if kept is None:
            rng = torch_rng("fisher", self.run_seed, self.current.content)
            index = balanced_sample(self.current.train, self.stream.train_columns, count, rng)
            x, y = self.stream.train_images[index], self.stream.train_columns[index] - self.current.columns.start
            of_loss = self.protocol.train
            found = diagonal_fisher(self.backbone, at, head, x, y, kind, of_loss.temperature, of_loss.batch)
            alone = time.perf_counter() - began
            header = {"kind": kind, "samples": len(index), "seconds": alone}
            self.store.save("fisher", key, {"fisher": found.vector}, header)
        else:
            found, alone = Weights(kept[0]["fisher"].to(at.vector), at.layout), kept[1]["seconds"]
        self.seconds["statistics"] += alone
        self.seconds["spent"] += time.perf_counter() - began
        return found

    def gram(self, samples: int) -> dict[str, Gram]:
        """Second moments of layer inputs at theta*_t on ``samples`` random training images, kept in the store."""
        self._need("images")
        began = time.perf_counter()
        place = [self.current.content, len(self.current.train), samples, self.run_seed]
        key = key_of("gram", self.trained.digest(), place, code_of_modules("run/statistics.py"))
        kept = self.store.load("gram", key)
        if kept is None:
            rng = torch_rng("gram", self.run_seed, self.current.content)
            order = torch.randperm(len(self.current.train), generator=rng)[:samples].to(self.current.train.device)
            found = gram(self.backbone, self.trained, self.stream.train_images[self.current.train[order]])
            alone = time.perf_counter() - began
            rows = {name: g.rows for name, g in found.items()}
            header: dict[str, Any] = {"rows": rows, "samples": len(order), "seconds": alone}
            self.store.save("gram", key, {name: g.sum for name, g in found.items()}, header)
        else:
            tensors, header = kept
            device = self.trained.vector.device
            found = {name: Gram(tensors[name].to(device), rows) for name, rows in header["rows"].items()}
            alone = header["seconds"]
        self.seconds["statistics"] += alone
        self.seconds["spent"] += time.perf_counter() - began
        return found

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
        """Logits (b, classes) of images under ``weights``; differentiable in them."""
        features = self.backbone.features(weights, x)
        if isinstance(heads, int):
            return self.heads[heads - 1](features)
        if heads == "current":
            return self.heads[-1](features)
        if heads == "old":
            return concatenate(self.stream.scenario.open_heads(self.heads[:-1]))(features)
        if heads == "seen":
            return concatenate(self.stream.scenario.open_heads(self.heads))(features)
        if heads == "fresh":
            content, std = self.current.content, self.protocol.head.init_std
            head = new_head(
                len(self.current.columns), self.backbone.dim, std, self.backbone.device, "fresh", self.run_seed, content
            )
            return head(features)
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

    def log(self, **scalars: float) -> None:
        """Keep numbers of this merge in the record."""
        self.scalars |= {name: float(value) for name, value in scalars.items()}
