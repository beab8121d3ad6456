"""Low-rank adaptation, LoRA (arXiv:2106.09685), as dense weights: W = W_start + scale * B A."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.init import kaiming_uniform_
from typing_extensions import Self

from bench.common.errors import UserError
from bench.config.schema import LoRAConfig
from bench.method.weights import Weights
from bench.model.adapters.adapter import Adapter
from bench.model.split_qkv import SplitQKV

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
        if options.modules is None:
            adapted = set(_projections(module, options.targets, where))
        else:
            adapted = set(_matching(module, options.modules, where))
        return [name for name, _ in module.named_parameters() if name in adapted]

    @classmethod
    def begin(cls, start: Weights, options: LoRAConfig, factors: str, seed: int) -> Self:
        """A is drawn, B is zero."""
        drawn = draw(start.layout.shapes, options.rank, seed)
        pairs = ((A.to(start.vector), B.to(start.vector)) for A, B in drawn)
        return cls(dict(zip(start.layout.names, pairs, strict=True)), start, options.scale, factors)

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


def _projections(module: nn.Module, targets: Iterable[str], where: str) -> Iterator[str]:
    """Weights of the parts of every fused query-key-value layer that ``targets`` names."""
    fused = {name: layer for name, layer in module.named_modules() if isinstance(layer, SplitQKV)}
    if not fused:
        raise UserError(
            f"{where}: lora.targets: {type(module).__name__} has no fused qkv layer whose parts could be adapted; name "
            "Linear or Conv2d modules (lora.modules) or use adapter: full"
        )
    for name, layer in module.named_modules():
        if name.endswith(".qkv") and isinstance(layer, nn.Linear):
            raise UserError(
                f"{where}: lora.targets: the {layer.out_features} rows of {name} are not q, k and v; use lora.modules"
            )
    for name, layer in fused.items():
        if not layer.thirds and set(targets) != set("qkv"):
            raise UserError(
                f"{where}: lora.targets: the rows of {name} are not q, k and v in three equal parts, so that "
                f"{', '.join(targets)} alone cannot be adapted; use lora.targets=[q,k,v] or lora.modules"
            )
        yield from (f"{name}.{target}.weight" for target in targets)


def _matching(module: nn.Module, pattern: str, where: str) -> Iterator[str]:
    """Weights of the modules whose whole name matches ``pattern``."""
    matched = {name: layer for name, layer in module.named_modules() if re.fullmatch(pattern, name)}
    if not matched:
        raise UserError(f"{where}: lora.modules: no module of {type(module).__name__} is called {pattern!r}")
    for name, layer in matched.items():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            parts = f"; name its parts {name}.q, .k and .v" if isinstance(layer, SplitQKV) else ""
            raise UserError(
                f"{where}: lora.modules: {pattern!r} matches {name or 'the whole model'}, a {type(layer).__name__}, "
                f"which is neither Linear nor Conv2d{parts}"
            )
        yield f"{name}.weight"
