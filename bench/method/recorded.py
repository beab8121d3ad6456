"""The Task that a rule sees, from tensors alone: references, other people's weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from bench.common.errors import UserError
from bench.common.seeds import numpy_rng
from bench.method.api import Rule, Start
from bench.method.asking import AsksByName, Need
from bench.method.chain import Chain
from bench.method.weights import Weights


@dataclass
class Recording:
    """What is known of one task without its data: theta*_t, and the statistics at hand."""

    trained: Weights
    #: by what they answer (see :class:`bench.method.asking.Need`): ``"fisher:exact"`` that kind alone, ``"fisher"`` any
    statistics: Mapping[str, Any] = field(default_factory=dict)
    recorded: dict[str, list[Weights]] = field(default_factory=dict)  #: by-products of training by kind
    start: Weights | None = None  #: where training began, where the start policy does not say it


@dataclass
class RecordedTask(AsksByName):
    """Task t from tensors alone: no images, no heads."""

    t: int
    pretrained: Weights
    start: Weights
    served: Weights
    trained: Weights
    recorded: dict[str, list[Weights]] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)  #: as in :class:`Recording`
    seed: int = 0
    scalars: dict[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recorded = _Given(self.recorded, f"task {self.t}: the rule needs a by-product of training")

    def statistic(
        self, key: str, *, kind: str | None = None, samples: int | None = None, at: Weights | None = None
    ) -> Any:
        """The recorded one of that kind (of as many samples as whoever recorded it took).

        Raises:
            UserError: none was given, or none at other weights than theta*_t, which is asked for.
        """
        elsewhere = at is not None and at is not self.trained
        need = Need(key, kind or "", elsewhere)
        for name in (str(need), str(replace(need, kind=""))):
            if name in self.statistics:
                return self.statistics[name]
        where = " at other weights" if elsewhere else ""
        raise UserError(f"task {self.t}: the rule needs {replace(need, elsewhere=False)}{where}; give it")

    def _no_images(self) -> UserError:
        return UserError(f"task {self.t}: the rule reads images, which recorded weights do not have")

    def batches(self, size: int, steps: int, labelled: bool = False) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Refused: there are no images."""
        raise self._no_images()

    def logits(self, weights: Weights, x: Tensor, heads: str | int = "current") -> Tensor:
        """Refused: there are no heads."""
        raise self._no_images()

    def columns(self, t: int) -> range:
        """Refused: there are no heads."""
        raise self._no_images()

    def validation(self, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Refused: there are no images."""
        raise self._no_images()

    def accuracy(self, weights: Weights) -> float:
        """Refused: there are no images."""
        raise self._no_images()

    def rng(self, purpose: str) -> np.random.Generator:
        """A random stream of this (seed, task, purpose)."""
        return numpy_rng("rule", self.seed, self.t, purpose)


class _Given(dict[str, Any]):
    """A lookup whose misses are the user's to mend."""

    def __init__(self, found: Mapping[str, Any], need: str) -> None:
        super().__init__(found)
        self._need = need

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self._need} ({key}); give one")


def merge_stream(
    rule: Rule, pretrained: Weights, tasks: Iterable[Recording], start: Start = "pretrained", seed: int = 0
) -> Iterator[RecordedTask]:
    """The tasks of a recorded stream one after the other, each merged through the ``merge`` that a run uses.

    ``task.served`` of what is yielded is theta_hat_t. Tasks are taken as they are needed, so only what the rule
    carries stays in memory.

    Args:
        rule: fresh; its state is begun here.
        pretrained: theta_0.
        tasks: theta*_t in order, with the statistics that the rule needs.
        start: where training of each task began.
        seed: of the rule's own random streams.

    Raises:
        UserError: the rule needs a statistic that was not given, or images.
        FloatingPointError: the rule served non-finite weights.
        ChangedInPlaceError: the rule wrote into what it was handed.
    """
    chain = Chain(rule, start, pretrained)

    def recorded(numbered: tuple[int, Recording], start: Weights) -> RecordedTask:
        t, known = numbered
        return RecordedTask(
            t, pretrained, known.start or start, chain.served, known.trained, known.recorded,
            known.statistics, seed,
        )  # fmt: skip

    for task in chain.tasks(enumerate(tasks, 1), recorded):
        task.served = chain.served
        yield task
        del task


def merge_recorded(
    rule: Rule,
    pretrained: Weights,
    trained: Sequence[Weights],
    fishers: Sequence[Weights] | None = None,
    scalars: list[dict[str, float | None]] | None = None,
    start: Start = "pretrained",
) -> list[Weights]:
    """theta_hat_1..theta_hat_T of a rule over recorded theta*_1..theta*_T: :func:`merge_stream` for short.

    Args:
        rule: fresh; its state is begun here.
        pretrained: theta_0.
        trained: theta*_t in order.
        fishers: empirical Fisher at each theta*_t, where the rule needs it.
        scalars: filled with what the rule logs, one dict a task.
        start: where training of each task began.
    """
    known = [Recording(w, {"fisher:empirical": fishers[i]} if fishers else {}) for i, w in enumerate(trained)]
    out = []
    for task in merge_stream(rule, pretrained, known, start):
        out.append(task.served)
        if scalars is not None:
            scalars.append(task.scalars)
    return out
