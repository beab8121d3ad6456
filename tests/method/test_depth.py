"""Block numbers out of the names of real models."""

from __future__ import annotations

import random

import pytest
import timm
import torch

from bench.method.tools.depth import block_numbers


def names_of(model: str) -> list[str]:
    with torch.device("meta"):
        return [name for name, _ in timm.create_model(model, pretrained=False, num_classes=0).named_parameters()]


@pytest.mark.parametrize(
    ("model", "blocks"),
    [
        ("vit_tiny_patch16_224", 12),
        ("vit_base_patch16_clip_224", 12),
        ("swin_tiny_patch4_window7_224", 2 + 2 + 6 + 2),
        ("convnext_atto", 2 + 2 + 6 + 2),
        ("resnet18", 2 + 2 + 2 + 2),
        ("efficientnet_lite0", 1 + 2 + 2 + 3 + 3 + 4 + 1),
    ],
)
def test_blocks_are_counted_from_the_input_on_whatever_the_order_of_names(model: str, blocks: int) -> None:
    names = names_of(model)
    numbers, count = block_numbers(names)
    inside = [n for n in numbers if n is not None]
    assert count == blocks
    assert inside == sorted(inside)  # timm lists parameters as the model runs through them
    assert set(inside) == set(range(blocks))
    shuffled = random.Random(0).sample(names, len(names))
    assert dict(zip(shuffled, block_numbers(shuffled)[0], strict=True)) == dict(zip(names, numbers, strict=True))


def test_what_is_outside_of_blocks_and_what_is_in_a_stage_only() -> None:
    names = ["pos_embed", "patch_embed.proj.weight", "stem.0.weight", "norm.weight", "visual.proj",
             "layers.1.downsample.norm.weight", "layers.1.blocks.0.attn.qkv.k.weight", "layers.0.blocks.1.mlp.fc1.bias",
             "layers.0.blocks.0.mlp.fc1.bias"]  # fmt: skip
    assert block_numbers(names) == ([None] * 5 + [2, 2, 1, 0], 3)
    assert block_numbers(["a", "b.weight"]) == ([None, None], 0)


def test_split_attention_of_a_vit_and_names_of_other_libraries() -> None:
    assert block_numbers([f"blocks.{i}.attn.qkv.{p}.weight" for i in (10, 2) for p in "kv"]) == ([1, 1, 0, 0], 2)
    assert block_numbers(
        ["visual.transformer.resblocks.3.mlp.0.weight", "visual.transformer.resblocks.0.ln_1.weight"]
    ) == ([1, 0], 2)
    assert block_numbers(["vision_model.encoder.layers.11.mlp.fc1.weight", "vision_model.encoder.layers.2.x.weight"])[
        0
    ] == [1, 0]
