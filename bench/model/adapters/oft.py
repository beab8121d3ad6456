"""Orthogonal fine-tuning, OFT (Qiu et al., arXiv:2306.07280), as dense weights: W = W_start R^T.

R is block-diagonal and orthogonal: the inputs of a layer are rotated, block by block, before they meet its weights, so
that lengths and angles between the rows of W stay. Every block is the Cayley transform of a skew-symmetric Q,

    R = (I - Q) (I + Q)^-1,    R^T - I = 2 (I - Q)^-1 Q = 2 (I - Q^2)^-1 (I + Q) Q

whose entries above the diagonal are trained, from 0 on. Signs and the order of entries are those of PEFT's
``OFTConfig`` with ``use_cayley_neumann=False``; its default takes five terms of a series (of the other sign) instead of
the inverse, which is not orthogonal. Not here: its constraint on the distance from I, blocks that are shared, dropout
of blocks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import Self

from bench.common.errors import UserError
from bench.config.schema import OFTConfig
from bench.method.weights import Weights
from bench.model.adapters.adapter import Adapter, selected


class OFT(Adapter[OFTConfig]):
    """W = W_start R^T for every adapted tensor; a convolution's weight is adapted as the matrix (out, in * kh * kw).

    ``parameters`` is one tensor, the entries of every block of every layer: (blocks of all tensors, b (b - 1) / 2).
    """

    def __init__(self, start: Weights, block: int) -> None:
        self._start, self._block = start, block
        self._counts = [math.prod(shape[1:]) // block for shape in start.layout.shapes]
        self._above = torch.triu_indices(block, block, 1, device=start.vector.device)
        entries = start.vector.new_zeros(sum(self._counts), self._above.shape[1])
        self.parameters = [entries.requires_grad_()]

    @classmethod
    def names(cls, module: nn.Module, options: OFTConfig, where: str) -> list[str]:
        """Weights of the modules that ``options.modules`` matches; without it, of every attention's ``targets``.

        Raises:
            UserError: the number of a layer's inputs is no multiple of the block.
        """
        found = selected(module, options, f"{where}: oft")
        parameters = dict(module.named_parameters())
        for name in found:
            inputs = math.prod(parameters[name].shape[1:])
            if inputs % options.block:
                raise UserError(f"{where}: oft.block: {options.block} does not divide the {inputs} inputs of {name}")
        return found

    @classmethod
    def begin(cls, start: Weights, options: OFTConfig, factors: str, seed: int) -> Self:
        """Q = 0; nothing is drawn."""
        return cls(start, options.block)

    def weights(self) -> Weights:
        """W_start R^T."""
        turns = self._turns().split(self._counts)
        moved = []
        for (_, W), turn in zip(self._start.items(), turns, strict=True):
            blocks = W.reshape(len(W), -1, self._block).transpose(0, 1)  # (blocks, out, b)
            moved.append((blocks @ turn).transpose(0, 1).reshape(-1))
        return Weights(self._start.vector + torch.cat(moved), self._start.layout)

    def _turns(self) -> Tensor:
        """R^T - I of all blocks (n, b, b)."""
        [entries] = self.parameters
        Q = entries.new_zeros(len(entries), self._block, self._block)
        Q = Q.index_put((torch.arange(len(entries), device=Q.device)[:, None], *self._above), entries)
        Q = Q - Q.mT
        identity = torch.eye(self._block, dtype=Q.dtype, device=Q.device)
        # I - Q^2 is symmetric and at least I: Cholesky's factor always exists, and is sooner had than an LU of I - Q.
        factor = torch.linalg.cholesky(identity - Q @ Q)
        return 2 * torch.cholesky_solve((identity + Q) @ Q, factor)
