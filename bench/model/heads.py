"""Heads: one a task, linear and trained with it, or frozen rows of text; concatenated for evaluation, never merged.

What classifies features once the weights are merged is in run/classifiers/: these heads, or others fitted to what is
served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from bench.common.seeds import torch_rng
from bench.config.schema import HeadConfig
from bench.data.scenario import CLASS_INCREMENTAL, Scenario
from bench.method.weights import Weights
from bench.model.class_rows import read_rows

if TYPE_CHECKING:
    from bench.data.stream import TaskData


@dataclass
class Head:
    """``weight`` (classes, D) and ``bias`` (classes,); ``normalise``: a fixed head on features of length 1."""

    weight: Tensor
    bias: Tensor
    normalise: bool = False

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (b, classes) of features (b, D), in float32 whatever the features' precision."""
        features = features.float()
        return linear(normalize(features, dim=-1) if self.normalise else features, self.weight, self.bias)

    @property
    def parameters(self) -> list[Tensor]:
        """What training changes."""
        return [] if self.normalise else [self.weight, self.bias]

    def split(self, sizes: Sequence[int]) -> list[Head]:
        """Heads over that many classes each, in order; without a graph."""
        parts = zip(self.weight.detach().split(list(sizes)), self.bias.detach().split(list(sizes)), strict=True)
        return [Head(weight, bias, self.normalise) for weight, bias in parts]

    def digest(self) -> str:
        """Of the bits."""
        return Weights.of({"w": self.weight, "b": self.bias}).digest() + "n" * self.normalise

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """What :meth:`of` reads back; plain names, so that files of linear heads are anybody's to read."""
        told = {f"{prefix}weight": self.weight, f"{prefix}bias": self.bias}
        return told | ({f"{prefix}normalise": torch.ones(1)} if self.normalise else {})

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], device: str | torch.device, prefix: str = "") -> Head:
        """The head whose :meth:`tensors` lie under ``prefix``."""
        weight, bias = (tensors[f"{prefix}{name}"].to(device) for name in ("weight", "bias"))
        return cls(weight, bias, f"{prefix}normalise" in tensors)


def new_head(classes: int, dim: int, std: float, device: str, *seed: int | str) -> Head:
    """A fresh head: normal weights of that deviation, zero bias; a function of the seed parts alone."""
    weight = std * torch.randn(classes, dim, generator=torch_rng("head", *seed))
    return Head(weight.to(device), torch.zeros(classes, device=device))


def training_heads(
    config: HeadConfig, tasks: Sequence[TaskData], dim: int, device: str, run_seed: int,
    scenario: Scenario = CLASS_INCREMENTAL, earlier: Sequence[Head] = (),
) -> Head:  # fmt: skip
    """What training of ``tasks`` begins with, one head over all their classes in order.

    ``tasks`` have a head each (see :meth:`Scenario.by_head`). Where the scenario goes on from one of the ``earlier``
    heads it is a copy of that; otherwise fresh linear heads, or for ``zero_shot`` the text rows of the tasks' classes
    (zero-shot CLIP, arXiv:2103.00020): logits are the rows times features of length 1, and there is nothing to train.

    Raises:
        UserError: the file of text rows is missing, or does not fit the backbone or the dataset.
    """
    if config.kind == "zero_shot":
        classes = [label for task in tasks for label in task.classes]
        rows = torch.from_numpy(read_rows(config, max(classes) + 1, dim)[classes])
        return Head(rows.to(device), torch.zeros(len(classes), device=device), normalise=True)
    last = scenario.goes_on_from(earlier)
    if last is not None:
        return Head(last.weight.detach().clone(), last.bias.detach().clone())
    return concatenate(
        [new_head(len(task.columns), dim, config.init_std, device, run_seed, task.content) for task in tasks]
    )


def concatenate(heads: Sequence[Head]) -> Head:
    """One head over the classes of all of them, in order."""
    kinds = {head.normalise for head in heads}
    return Head(torch.cat([h.weight for h in heads]), torch.cat([h.bias for h in heads]), kinds == {True})
