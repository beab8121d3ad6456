"""The adapted weights of a model as one vector with named views.

Merging rules are mostly elementwise or dot products over *all* adapted weights: on one vector they are one line and
one kernel. Rules that work layer by layer (spectral ones, per-module coefficients) use the views.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Names, shapes and own dtypes of the tensors that lie end to end in the vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each tensor."""
        import math

        return tuple(math.prod(shape) for shape in self.shapes)


class Weights:
    """P adapted weights: ``vector`` (P,) of one compute dtype, and the ``layout`` that names its parts.

    Arithmetic is elementwise with another ``Weights`` or a scalar and never in place, so no rule can change what
    another one holds. Reductions accumulate in float64.
    """

    __slots__ = ("layout", "vector")

    def __init__(self, vector: Tensor, layout: Layout) -> None:
        self.vector, self.layout = vector, layout

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Weights:
        """Lay named tensors end to end; computed in at least float32, in float64 where any input is float64.

        Args:
            tensors: floating-point tensors of any shapes, taken in the mapping's order.
            dtype: overrides the compute dtype.
        """
        import torch

        if dtype is None:
            wide = any(t.dtype == torch.float64 for t in tensors.values())
            dtype = torch.float64 if wide else torch.float32
        layout = Layout(
            tuple(tensors),
            tuple(tuple(t.shape) for t in tensors.values()),
            tuple(str(t.dtype).removeprefix("torch.") for t in tensors.values()),
        )
        return cls(torch.cat([t.detach().reshape(-1).to(dtype) for t in tensors.values()]), layout)

    # ---- views -------------------------------------------------------------------------------------------------
    def items(self) -> Iterator[tuple[str, Tensor]]:
        """(name, view) pairs; a view shares memory with the vector and carries its gradient."""
        parts = self.vector.split(self.layout.sizes)
        for name, shape, part in zip(self.layout.names, self.layout.shapes, parts, strict=True):
            yield name, part.view(shape)

    def tensors(self) -> dict[str, Tensor]:
        """The views by name, in the compute dtype."""
        return dict(self.items())

    def export(self) -> dict[str, Tensor]:
        """Copies by name, each in its own dtype: what is written to a checkpoint."""
        import torch

        pairs = zip(self.items(), self.layout.dtypes, strict=True)
        return {name: view.detach().to(getattr(torch, dtype), copy=True) for (name, view), dtype in pairs}

    def stacks(self) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """(names, (n, *shape)) for every shape: all tensors of one shape at once, for batched linear algebra."""
        import torch

        groups: dict[tuple[int, ...], list[tuple[str, Tensor]]] = {}
        for name, view in self.items():
            groups.setdefault(tuple(view.shape), []).append((name, view))
        for pairs in groups.values():
            yield tuple(name for name, _ in pairs), torch.stack([view for _, view in pairs])

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Weights:
        """These weights with some tensors replaced, by name."""
        import torch

        parts = [tensors.get(name, view).reshape(-1).to(view) for name, view in self.items()]
        return Weights(torch.cat(parts), self.layout)

    def map(self, function: Callable[[Tensor], Tensor]) -> Weights:
        """The function applied to the vector (elementwise functions only: tensors lie end to end in it)."""
        return Weights(function(self.vector), self.layout)

    def zeros(self) -> Weights:
        """Zeros of the same layout."""
        return self.map(lambda v: v.new_zeros(v.shape))

    def detach(self) -> Weights:
        """The same numbers without a graph, in memory of their own."""
        return self.map(lambda v: v.detach().clone())

    def normal(self, rng: np.random.Generator) -> Weights:
        """Standard normal noise of the same layout, drawn on the CPU: it does not depend on where the weights lie."""
        import torch

        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return self.map(lambda v: torch.randn(v.shape, generator=generator, dtype=v.dtype).to(v.device))

    # ---- arithmetic --------------------------------------------------------------------------------------------
    def _with(self, other: Weights | float | Tensor, operation: Callable[[Tensor, Tensor | float], Tensor]) -> Weights:
        return Weights(operation(self.vector, other.vector if isinstance(other, Weights) else other), self.layout)

    def __add__(self, other: Weights | float | Tensor) -> Weights:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Weights | float | Tensor) -> Weights:
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other: Weights | float | Tensor) -> Weights:
        return self._with(other, lambda a, b: a * b)

    def __truediv__(self, other: Weights | float | Tensor) -> Weights:
        return self._with(other, lambda a, b: a / b)

    def __pow__(self, exponent: float) -> Weights:
        return self.map(lambda v: v**exponent)

    def __neg__(self) -> Weights:
        return self.map(lambda v: -v)

    __radd__, __rmul__ = __add__, __mul__

    # ---- reductions --------------------------------------------------------------------------------------------
    def sum(self) -> Tensor:
        """Differentiable sum of all entries, in the compute dtype (for penalties)."""
        return self.vector.sum()

    def dot(self, other: Weights) -> float:
        """Inner product over all entries, accumulated in float64."""
        return float(self.dots(other).sum())

    def dots(self, other: Weights) -> Tensor:
        """Inner product of each tensor with its counterpart: (number of tensors,) float64."""
        import torch

        mine, theirs = self.vector.detach().split(self.layout.sizes), other.vector.detach().split(self.layout.sizes)
        # Tensor by tensor: a float64 copy of the whole vector would double a large model's memory.
        return torch.stack([torch.dot(a.double(), b.double()) for a, b in zip(mine, theirs, strict=True)])

    def norm(self) -> float:
        """Euclidean norm over all entries."""
        return self.dot(self) ** 0.5

    def norms(self) -> Tensor:
        """Euclidean norm of each tensor: (number of tensors,) float64."""
        return self.dots(self).sqrt()

    def spread(self, values: Tensor) -> Weights:
        """One value a tensor, (number of tensors,), repeated over that tensor's entries."""
        import torch

        sizes = torch.tensor(self.layout.sizes, device=self.vector.device)
        # Knowing the size spares a GPU a wait.
        return self.map(lambda v: values.to(v).repeat_interleave(sizes, output_size=v.numel()))

    # ---- identity ----------------------------------------------------------------------------------------------
    @property
    def nbytes(self) -> int:
        """Bytes of the vector."""
        return self.vector.numel() * self.vector.element_size()

    def digest(self) -> str:
        """128-bit hex digest of the bits (two weights are bit-equal exactly where their digests are)."""
        return hashlib.blake2b(self.vector.detach().cpu().contiguous().numpy().tobytes(), digest_size=16).hexdigest()

    def to(self, device: str) -> Weights:
        """The same weights on another device."""
        return self.map(lambda v: v.to(device))

    def __repr__(self) -> str:
        return f"Weights({self.vector.numel():,} in {len(self.layout.names)} tensors, {self.vector.dtype})"
