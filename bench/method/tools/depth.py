"""How deep a tensor lies in the model, told by its name."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: modules whose numbered children are what a model is a stack of: timm's, and those of other libraries' checkpoints
STACK = re.compile(r"(?:blocks|resblocks|layers|stages|layer)(\d*)")


def block_numbers(names: Sequence[str]) -> tuple[list[int | None], int]:
    """Of each tensor the number of its residual block, 0 nearest to the input, and the number of blocks L.

    None for what lies outside of them: embeddings, the stem, the last norm. Blocks are counted through stages
    (``stages.1.blocks.0`` follows the last of ``stages.0``), whatever the order of the names; what lies in a stage but
    in no block of it, as its downsampling, counts with the stage's first block. Only blocks that have a tensor among
    ``names`` are counted.

    Args:
        names: of tensors, as ``blocks.3.attn.qkv.k.weight``, ``layers.1.blocks.0.mlp.fc1.weight`` (Swin),
            ``layer4.1.conv2.weight`` (ResNet), ``blocks.2.1.conv_pw.weight`` (EfficientNet).
    """
    places = [_place(name) for name in names]
    blocks = sorted(p for p in set(places) if p and not any(q != p and q[: len(p)] == p for q in places))
    number = {p: next(i for i, block in enumerate(blocks) if block[: len(p)] == p) for p in set(places) if p}
    return [number.get(place) for place in places], len(blocks)


def _place(name: str) -> tuple[int, ...]:
    """The numbers of stage and block in a name, () outside: they follow a module of ``STACK`` at once."""
    place: list[int] = []
    inside = False
    for part in name.split(".")[:-1]:
        stack = STACK.fullmatch(part)
        if stack:
            inside = True
            place += [int(stack[1])] if stack[1] else []
        elif inside and part.isdigit():
            place.append(int(part))
        elif inside:
            break
    return tuple(place)
