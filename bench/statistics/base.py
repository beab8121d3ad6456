"""What a statistic owns: what it reads, how it is computed, kept, read from a file, and what zero is of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor

from bench.common.cache import key_of
from bench.config.schema import ProtocolConfig
from bench.data.stream import Stream, TaskData
from bench.method.weights import Layout, Weights
from bench.model.backbone import Backbone
from bench.model.heads import Head
from bench.registry.code_hash import code_of_modules
from bench.statistics import code_files
from bench.statistics.named import Named

Value = TypeVar("Value")


@dataclass(frozen=True)
class Place:
    """What a statistic is taken of: a task's training data, a model, a point in weight space, and what was asked."""

    backbone: Backbone
    at: Weights
    heads: Sequence[Head]  #: of tasks 1..t
    stream: Stream
    task: TaskData
    protocol: ProtocolConfig
    run_seed: int
    kind: str  #: one of the statistic's kinds, "" where it has none
    samples: int  #: how many of the task's images at most

    @property
    def head(self) -> Head:
        """The task's own."""
        return self.heads[-1]

    @property
    def open_heads(self) -> Sequence[Head]:
        """Those of all tasks seen that answer at test, in the order of the stream's columns."""
        return self.stream.scenario.open_heads(self.heads)

    def images(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (n, C, H, W) of an index (n,), and their columns within the head (n,)."""
        return self.stream.train_images[index], self.stream.train_columns[index] - self.task.columns.start


class Statistic(ABC, Generic[Value]):
    """Base of all statistics. An instance holds nothing: it is shared."""

    key: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("",)  #: estimators, the default first

    def reads(self, kind: str) -> Literal["images", "labels"]:
        """What of the current task's data it needs: a plugin has to declare it (``data``)."""
        return "images"

    @abstractmethod
    def identity(self, place: Place) -> list[Any]:
        """What its value depends on besides the weights and this code: JSON-able, for the cache key."""

    @abstractmethod
    def compute(self, place: Place) -> Value:
        """Its value, a function of what :meth:`identity` names."""

    @abstractmethod
    def zero(self, value: Value) -> Value:
        """What it would be where the loss is flat: zero, as far as it depends on it (``clmerge check`` tries that)."""

    @abstractmethod
    def cast(self, value: Value, dtype: torch.dtype, device: str) -> Value:
        """The same numbers, where they follow the weights' dtype in that one, on that device."""

    @abstractmethod
    def pack(self, value: Value) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As named tensors and a JSON-able header."""

    @abstractmethod
    def unpack(self, tensors: dict[str, Tensor], header: dict[str, Any], like: Weights) -> Value:
        """What :meth:`pack` gave, on the device of ``like`` and in its layout."""

    @abstractmethod
    def check_file(self, file: Named, model: Named, names: Sequence[str]) -> None:
        """Names and shapes of a user's file against the model's tensors, of which ``names`` are merged; reads no value.

        Raises:
            UserError: which tensor is wrong.
        """

    @abstractmethod
    def read_file(self, file: Named, layout: Layout, dtype: torch.dtype) -> Value:
        """The value out of a checked file.

        Raises:
            UserError: a value that cannot be.
        """

    def cache_key(self, place: Place) -> str:
        """The name under which the value is kept."""
        return key_of(self.key, place.at.digest(), self.identity(place), code_of_modules(*code_files(self.key)))
