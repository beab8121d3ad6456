"""Named tensors of a file, laid end to end as weights, every value looked at: how ``clmerge merge`` reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.common.errors import UserError
from bench.method.weights import Layout, Weights


class Shape(Protocol):
    """What is known of a tensor before it is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...


class Named(Protocol):
    """Named tensors of a file, an adapter or a mapping, asked for one at a time."""

    @property
    def where(self) -> str:
        """What an error names."""
        ...

    @property
    def specs(self) -> Mapping[str, Any]:
        """By name, a :class:`Shape`."""
        ...

    def tensors(self, names: Iterable[str]) -> Iterator[Tensor]:
        """Of these names, in this order."""
        ...


def check_covers(file: Named, model: Named, names: Sequence[str]) -> None:
    """A tensor of the model's shape for each of the names.

    Raises:
        UserError: which one is missing or has another shape.
    """
    missing = [name for name in names if name not in file.specs]
    if missing:
        raise UserError(f"{file.where}: nothing for tensor {missing[0]!r} ({len(missing)} missing)")
    for name in names:
        shape, wanted = file.specs[name].shape, model.specs[name].shape
        if shape != wanted:
            raise UserError(f"{file.where}: tensor {name!r} has shape {shape}, in {model.where} {wanted}")


def check_values(x: Tensor, where: str, signed: bool = True) -> None:
    """Every value is finite and, unless ``signed``, not negative.

    Raises:
        UserError: how many are not.
    """
    if not bool(torch.isfinite(x).all()):
        count = int((~torch.isfinite(x)).sum())
        raise UserError(f"{where} holds {count} values that are not finite; mend or leave it out")
    if not signed and bool((x < 0).any()):
        raise UserError(f"{where} holds negative values; it is a mean of squares")


def laid_out(file: Named, layout: Layout, dtype: torch.dtype, signed: bool = True) -> Weights:
    """The layout's tensors end to end, filled one by one so that no second copy is held.

    Raises:
        UserError: as :func:`check_values` has it.
    """
    vector = torch.empty(0, dtype=dtype)
    for i, (name, tensor) in enumerate(zip(layout.names, file.tensors(layout.names), strict=True)):
        if i == 0:
            vector = torch.empty(sum(layout.sizes), dtype=dtype, device=tensor.device)
            parts = vector.split(layout.sizes)
        parts[i].copy_(tensor.reshape(-1))
        check_values(parts[i], f"{file.where}: tensor {name!r}", signed)
    return Weights(vector, layout)
