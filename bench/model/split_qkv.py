"""timm's fused query-key-value layer as three Linears, so that each can be adapted and merged on its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SplitQKV(nn.Module):
    """timm's fused ``attn.qkv`` as three Linears that adapters can target one by one; bit-equal to the fused one.

    Attributes:
        thirds: whether the three are query, key and value as the model reads them. Where it is False the rows are laid
            out in another way, and the parts are no more than thirds of a matrix.
    """

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear

    def __init__(self, fused: nn.Linear, thirds: bool = True) -> None:
        super().__init__()
        self.thirds = thirds
        size = fused.out_features // 3
        for i, name in enumerate("qkv"):
            part = nn.Linear(fused.in_features, size, bias=fused.bias is not None, device="meta")  # no random draw
            part.weight = nn.Parameter(fused.weight.detach()[i * size : (i + 1) * size].clone())
            if fused.bias is not None:
                part.bias = nn.Parameter(fused.bias.detach()[i * size : (i + 1) * size].clone())
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, D) to (b, tokens, 3 D)."""
        return torch.cat([part(x) for part in self.children()], dim=-1)

    @property
    def weight(self) -> Tensor:
        """The fused weight (3 D, D), for models that multiply by it themselves, as BEiT does."""
        return torch.cat([self.q.weight, self.k.weight, self.v.weight])

    @property
    def bias(self) -> Tensor | None:
        """The fused bias (3 D,), if the layer has one."""
        return None if self.q.bias is None else torch.cat([self.q.bias, self.k.bias, self.v.bias])


def split_fused_qkv(model: nn.Module) -> None:
    """Put a :class:`SplitQKV` in the place of every fused ``qkv`` Linear whose rows can be cut in three, in place."""
    for attention in model.modules():
        fused = getattr(attention, "qkv", None)
        if isinstance(fused, nn.Linear) and fused.out_features % 3 == 0:
            attention.qkv = SplitQKV(fused, _in_thirds(attention, fused.out_features))


def _in_thirds(attention: nn.Module, outputs: int) -> bool:
    """Whether the rows are all of q, then all of k, then all of v.

    Not so where what attention gives out, as many values as v has, is no third of the rows (EfficientFormer's v is
    wider, GC-ViT's global blocks have k and v alone), nor where q, k and v alternate from head to head (TinyViT has
    ``key_dim``, MaxViT ``head_first``).
    """
    out = getattr(attention, "proj", None)
    if isinstance(out, nn.Linear) and 3 * out.in_features != outputs:
        return False
    return not hasattr(attention, "key_dim") and not getattr(attention, "head_first", False)
