"""LiNeS against its scales, tensor by tensor."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.carried import nbytes
from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Models, chain, close, property_test, rule, seeds

NAMES = {"patch_embed.proj.weight": 0.0, "blocks.0.attn.qkv.k.weight": 0.0, "blocks.1.attn.qkv.k.weight": 0.5,
         "blocks.1.norm1.bias": 0.5, "blocks.2.attn.qkv.v.weight": 1.0, "norm.weight": 0.0}  # fmt: skip


def draw(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return Weights.of({name: torch.randn(3, 2, generator=generator, dtype=torch.float64) for name in NAMES})


@property_test
@given(seeds, st.floats(0, 2))
def test_every_tensor_has_its_scale_after_every_task(seed: int, beta: float) -> None:
    theta_0, taus = draw(seed), [draw(seed + i) for i in (1, 2, 3)]
    told: list[dict[str, float | None]] = []
    served = merge_recorded(rule("lines", beta=beta), theta_0, [theta_0 + tau for tau in taus], scalars=told)
    for t, got in enumerate(served, 1):
        for name, relative in NAMES.items():
            expected = theta_0.tensors()[name] + (1 / t + beta * relative) * sum(x.tensors()[name] for x in taus[:t])
            torch.testing.assert_close(got.tensors()[name], expected, rtol=1e-12, atol=1e-12)
    assert [row["blocks"] for row in told] == [3, 3, 3]


def test_without_slope_or_without_blocks_it_is_the_average() -> None:
    models = Models.draw(0)
    average = chain(rule("average"), models, "pretrained")
    for beta in (0.0, 0.7):  # the toy's names have no blocks
        lines = rule("lines", beta=beta)
        assert all(close(a, b) for a, b in zip(chain(lines, models, "pretrained"), average, strict=True))
        assert nbytes(lines) == models.theta_0.nbytes
