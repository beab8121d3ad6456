"""Low-rank adaptation, LoRA (arXiv:2106.09685), as dense weights: W = W_start + scale * B A."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.init import kaiming_uniform_
from typing_extensions import Self

from bench.config.schema import LoRAConfig
from bench.method.weights import Weights
from bench.model.adapters.adapter import Adapter, selected

Shape = tuple[int, ...]
Factors = tuple[Tensor, Tensor]  #: A (r, in) and B (out, r)


class LoRA(Adapter[LoRAConfig]):
    """W = W_start + scale * B A for every adapted tensor; tensors of one shape are one batched product.

    A convolution's weight (out, in, kh, kw) is adapted as the matrix (out, in * kh * kw).
    """

    def __init__(self, factors: dict[str, Factors], start: Weights, scale: float, trained: str = "AB") -> None:
        groups: dict[Shape, list[str]] = {}
        for name, shape in zip(start.layout.names, start.layout.shapes, strict=True):
            groups.setdefault(shape, []).append(name)
        self._start, self._scale, self._groups = start, scale, list(groups.values())
        self.A = [torch.stack([factors[n][0] for n in names]).requires_grad_("A" in trained) for names in self._groups]
        self.B = [torch.stack([factors[n][1] for n in names]).requires_grad_("B" in trained) for names in self._groups]
        self.parameters = [p for p in (*self.A, *self.B) if p.requires_grad]

    @classmethod
    def names(cls, module: nn.Module, options: LoRAConfig, where: str) -> list[str]:
        """Weights of the modules that ``options.modules`` matches; without it, of every attention's ``targets``."""
        return selected(module, options, f"{where}: lora")

    @classmethod
    def begin(cls, start: Weights, options: LoRAConfig, factors: str, seed: int) -> Self:
        """A is drawn, B is zero."""
        drawn = draw(start.layout.shapes, options.rank, seed)
        pairs = ((A.to(start.vector), B.to(start.vector)) for A, B in drawn)
        return cls(dict(zip(start.layout.names, pairs, strict=True)), start, options.scale, factors)

    def hold(self, rows: Mapping[str, Tensor]) -> None:
        """Replace A by the first of those rows, zeros below them where there are fewer than the rank."""
        for A, names in zip(self.A, self._groups, strict=True):
            for own, name in zip(A, names, strict=True):
                if name in rows:
                    own.zero_()[: len(rows[name])] = rows[name][: len(own)]

    def weights(self) -> Weights:
        """W_start + scale * B A."""
        products = [torch.bmm(b, a) for a, b in zip(self.A, self.B, strict=True)]
        if len(products) == 1:
            delta = products[0].reshape(-1)
        else:
            by_name = {
                n: p for names, ps in zip(self._groups, products, strict=True) for n, p in zip(names, ps, strict=True)
            }
            delta = torch.cat([by_name[n].reshape(-1) for n in self._start.layout.names])
        return Weights(self._start.vector + self._scale * delta, self._start.layout)


def draw(shapes: Iterable[Shape], rank: int, seed: int) -> Iterator[Factors]:
    """A (rank, in) Kaiming-uniform and B (out, rank) zero for each weight of shape (out, in) or (out, in, kh, kw).

    The numbers are those of PEFT under ``torch.manual_seed(seed)``. PEFT makes two layers, which draw A and B, and then
    draws A again, so two draws of three are thrown away.
    """
    generator = torch.Generator().manual_seed(seed)
    for out, *inputs in shapes:
        A, B = torch.empty(rank, math.prod(inputs)), torch.empty(out, rank)
        for factor in (A, B, A):
            kaiming_uniform_(factor, a=math.sqrt(5), generator=generator)
        yield A, B.zero_()
