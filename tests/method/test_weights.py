from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bench.common.files import load_tensors, save_tensors
from bench.method import Rule, state
from bench.method.carried import nbytes, pack, unpack
from bench.method.weights import Layout, Weights

shapes = st.lists(st.lists(st.integers(1, 4), min_size=0, max_size=3).map(tuple), min_size=1, max_size=5)
seeds = st.integers(0, 2**32 - 1)


def random(shapes: list[tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{i}": torch.randn(s, generator=generator, dtype=dtype) for i, s in enumerate(shapes)}


def weights(seed: int = 0, dtype: torch.dtype = torch.float64) -> Weights:
    return Weights.of(random([(3, 2), (4,), (), (2, 2, 2)], seed, dtype))


# ---- the vector and its views --------------------------------------------------------------------------------------
@given(shapes, seeds)
def test_of_lays_tensors_end_to_end_in_the_mappings_order(shapes: list[tuple[int, ...]], seed: int) -> None:
    tensors = random(shapes, seed)
    turned = dict(reversed(tensors.items()))
    for mapping in (tensors, turned):
        w = Weights.of(mapping)
        assert w.layout.names == tuple(mapping)
        assert w.layout.shapes == tuple(tuple(t.shape) for t in mapping.values())
        assert torch.equal(w.vector, torch.cat([t.reshape(-1) for t in mapping.values()]))
        assert sum(w.layout.sizes) == w.vector.numel()
        assert all(torch.equal(view, mapping[name]) for name, view in w.items())
        assert list(w.tensors()) == list(mapping)


def test_of_computes_in_float32_at_least_and_in_float64_where_any_input_has_it() -> None:
    half, single, double = (torch.ones(2, dtype=d) for d in (torch.bfloat16, torch.float32, torch.float64))
    assert Weights.of({"a": half}).vector.dtype == torch.float32
    assert Weights.of({"a": half, "b": single}).vector.dtype == torch.float32
    assert Weights.of({"a": half, "b": double}).vector.dtype == torch.float64
    assert Weights.of({"a": double}, dtype=torch.float32).vector.dtype == torch.float32


def test_of_copies_and_cuts_the_graph() -> None:
    for tensors in (random([(3,)], 0), random([(3,), (2,)], 0)):  # one tensor and several
        leaf = tensors["layer.0"].requires_grad_()
        w = Weights.of(tensors)
        with torch.no_grad():
            leaf.zero_()
        assert not w.vector.requires_grad
        assert bool((w.vector != 0).all())


def test_export_gives_each_tensor_its_own_dtype_in_memory_of_its_own() -> None:
    tensors = {
        "a": torch.tensor([[1.5, 2.0]], dtype=torch.bfloat16),
        "b": torch.tensor([1 / 3], dtype=torch.float64),
        "c": torch.tensor(2.5, dtype=torch.float16),
    }
    w = Weights.of(tensors)
    out = w.export()
    assert list(out) == list(tensors)
    for name, tensor in tensors.items():
        assert out[name].dtype == tensor.dtype
        assert torch.equal(out[name], tensor)
        assert out[name].is_contiguous()
        out[name].zero_()
    assert torch.equal(w.vector, Weights.of(tensors).vector)


def test_views_share_memory_and_carry_the_gradient() -> None:
    w = weights().map(lambda v: v.requires_grad_())
    views = w.tensors()
    assert views["layer.0"].data_ptr() == w.vector.data_ptr()
    (2 * views["layer.1"]).sum().backward()
    expected = Weights.of({n: torch.full_like(v, 2.0 * (n == "layer.1")) for n, v in views.items()})
    assert w.vector.grad is not None
    assert torch.equal(w.vector.grad, expected.vector)


def test_detach_has_memory_of_its_own() -> None:
    w = weights().map(lambda v: v.requires_grad_())
    copy = w.detach()
    before = w.digest()
    copy.vector.add_(1)
    assert not copy.vector.requires_grad
    assert w.digest() == before


# ---- arithmetic ----------------------------------------------------------------------------------------------------
@given(seeds, st.floats(-3, 3))
def test_arithmetic_is_elementwise_and_changes_no_operand(seed: int, scalar: float) -> None:
    a, b = weights(seed), weights(seed + 1)
    x, y = a.vector.numpy().copy(), b.vector.numpy().copy()
    for got, expected in (
        (a + b, x + y),
        (a - b, x - y),
        (a * b, x * y),
        (a / b, x / y),
        (a + scalar, x + scalar),
        (scalar + a, x + scalar),
        (a - scalar, x - scalar),
        (scalar * a, x * scalar),
        (a * torch.tensor(scalar, dtype=torch.float64), x * scalar),
        (a / 4, x / 4),
        (a**2, x**2),
        (-a, -x),
        (a.zeros(), 0 * x),
        (a.map(torch.abs), np.abs(x)),
    ):
        np.testing.assert_array_equal(got.vector.numpy(), expected)
        assert got.layout is a.layout
    np.testing.assert_array_equal(a.vector.numpy(), x)
    np.testing.assert_array_equal(b.vector.numpy(), y)


def test_in_place_operators_rebind_and_do_not_change_the_original() -> None:
    a = weights()
    held, before = a, a.digest()
    a += weights(1)
    a *= 2
    assert held.digest() == before
    assert a is not held


@given(seeds)
def test_reductions_tensor_by_tensor_and_over_all(seed: int) -> None:
    a, b = weights(seed), weights(seed + 1)
    parts = [float((x * y).sum()) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True)]
    np.testing.assert_allclose(a.dots(b).numpy(), parts, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(a.dot(b), sum(parts), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(a.norm(), float(a.vector.norm()), rtol=1e-12)
    np.testing.assert_allclose(a.norms().numpy(), [float(t.norm()) for t in a.tensors().values()], rtol=1e-12)
    np.testing.assert_allclose(float(a.sum()), float(a.vector.sum()), rtol=1e-12)


def test_dot_accumulates_in_float64() -> None:
    values = torch.cat([torch.full((4096,), 1e4), torch.tensor([1e-2])])
    w = Weights.of({"a": values})
    exact = float((values.double() ** 2).sum())
    assert w.dot(w) == exact
    assert w.dots(w).dtype == torch.float64
    assert float((values**2).sum()) != exact  # float32 would not have seen the small entry


def test_sum_keeps_the_graph() -> None:
    w = weights().map(lambda v: v.requires_grad_())
    (w * w).sum().backward()
    assert w.vector.grad is not None
    assert torch.equal(w.vector.grad, 2 * w.vector.detach())


@given(shapes, seeds)
def test_spread_repeats_one_value_a_tensor(shapes: list[tuple[int, ...]], seed: int) -> None:
    w = Weights.of(random(shapes, seed, torch.float32))
    values = torch.arange(len(shapes), dtype=torch.float64)
    for i, (_, view) in enumerate(w.spread(values).items()):
        assert view.dtype == torch.float32
        assert bool((view == i).all())


def test_spread_is_differentiable_in_its_values() -> None:
    w, values = weights(), torch.ones(4, dtype=torch.float64, requires_grad=True)
    w.spread(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == list(w.layout.sizes)


def test_normal_noise_is_drawn_on_the_cpu_wherever_the_weights_lie() -> None:
    here, there = torch.zeros(7), torch.zeros(7, device="meta")  # which has no generator of its own
    rngs = [np.random.default_rng(3) for _ in range(2)]
    drawn, elsewhere = (Weights.of({"a": x}).normal(rng) for x, rng in zip((here, there), rngs, strict=True))
    seed = int(np.random.default_rng(3).integers(2**62))
    assert torch.equal(drawn.vector, torch.randn(7, generator=torch.Generator().manual_seed(seed)))
    assert elsewhere.vector.device.type == "meta"
    assert rngs[0].integers(2**62) == rngs[1].integers(2**62)


def test_normal_is_a_function_of_the_generator() -> None:
    w = weights(dtype=torch.float32)
    rng = np.random.default_rng(3)
    first, second, again = w.normal(rng), w.normal(rng), w.normal(np.random.default_rng(3))
    assert torch.equal(first.vector, again.vector)
    assert not torch.equal(first.vector, second.vector)
    assert first.vector.dtype == torch.float32
    big = Weights.of({"a": torch.zeros(20_000)}).normal(np.random.default_rng(0)).vector
    assert abs(float(big.mean())) < 0.03
    assert abs(float(big.std()) - 1) < 0.03


def test_digest_tells_single_bits_apart_and_nbytes_is_exact() -> None:
    a, b = weights(dtype=torch.float32), weights(dtype=torch.float32)
    assert a.digest() == b.digest()
    b.vector[3] = torch.nextafter(b.vector[3], torch.tensor(torch.inf))
    assert a.digest() != b.digest()
    assert a.nbytes == 4 * (6 + 4 + 1 + 8)
    assert weights().nbytes == 8 * (6 + 4 + 1 + 8)


def test_layout_sizes_count_scalars_as_one() -> None:
    assert Layout(("a", "b", "c"), ((), (2, 3), (0,)), ("float32",) * 3).sizes == (1, 6, 0)


# ---- what a plugin remembers ---------------------------------------------------------------------------------------
class Memory(Rule):
    key = "memory"
    S: Weights = state()
    rest: Any = state(dict)
    count: int = state(0)


def begun(rest: Any = None) -> Memory:
    rule = Memory()
    rule.begin(weights(dtype=torch.float32))
    rule.S = weights(1, torch.float32)
    rule.rest, rule.count = rest, 7
    return rule


def travelled(rule: Rule, folder: Path) -> Memory:
    """The rule's memory through the file that a resumed run reads."""
    tensors, tree = pack(rule)
    save_tensors(folder / "memory.safetensors", tensors, {"tree": tree})
    kept = load_tensors(folder / "memory.safetensors")
    assert kept is not None
    fresh = Memory()
    fresh.begin(weights(dtype=torch.float32))
    unpack(fresh, kept[0], kept[1]["tree"], fresh.pretrained)
    return fresh


def test_memory_comes_back_bit_for_bit(tmp_path: Path) -> None:
    gram = torch.randn(3, 3, dtype=torch.float64)
    rest = {
        "gram": {"blocks.0": gram, "blocks.1": torch.arange(4)},
        "weights": [weights(2, torch.float32), None, "text", True, 3, 1 / 3, float("inf"), []],
        5: {"nested": [{"deep": torch.tensor(1.5)}]},
    }
    fresh = travelled(begun(rest), tmp_path)
    assert fresh.S.digest() == weights(1, torch.float32).digest()
    assert fresh.S.layout == weights(dtype=torch.float32).layout
    assert fresh.count == 7
    assert list(fresh.rest) == ["gram", "weights", 5]
    assert torch.equal(fresh.rest["gram"]["blocks.0"], gram)
    assert fresh.rest["gram"]["blocks.0"].dtype == torch.float64
    assert torch.equal(fresh.rest["gram"]["blocks.1"], torch.arange(4))
    assert fresh.rest["weights"][0].digest() == weights(2, torch.float32).digest()
    assert fresh.rest["weights"][1:] == rest["weights"][1:]
    assert fresh.rest["weights"][3] is True
    assert torch.equal(fresh.rest[5]["nested"][0]["deep"], torch.tensor(1.5))


plain = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)


@settings(max_examples=25)
@given(st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))
def test_plain_values_survive_json(value: Any) -> None:
    tensors, tree = pack(begun(value))
    fresh = Memory()
    fresh.begin(weights(dtype=torch.float32))
    unpack(fresh, tensors, json.loads(json.dumps(tree)), fresh.pretrained)
    assert fresh.rest == value
    assert type(fresh.rest) is type(value)


def test_nbytes_counts_every_tensor_and_nothing_else() -> None:
    assert nbytes(begun()) == 19 * 4
    assert nbytes(begun({"a": torch.zeros(3, dtype=torch.float64), "b": [torch.zeros(2), "x" * 1000]})) == 76 + 24 + 8
    assert nbytes(Rule()) == 0


def test_state_begins_anew_for_every_run() -> None:
    first, second = Memory(), Memory()
    for rule in (first, second):
        rule.begin(weights())
    first.rest["a"] = 1
    assert second.rest == {}
    assert not bool(first.S.vector.any())
    first.begin(weights())
    assert first.rest == {}


@pytest.mark.parametrize("value", [{1, 2}, (1, 2), np.float64(1).reshape(1), object(), b"bytes"])
def test_a_type_that_cannot_be_saved_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"memory\.rest.*{type(value).__name__}"):
        pack(begun({"a": [value]}))


def test_keys_with_dots_do_not_collide(tmp_path: Path) -> None:
    rest = {"a": {"b": torch.zeros(2)}, "a.b": torch.ones(2)}
    fresh = travelled(begun(rest), tmp_path)
    assert torch.equal(fresh.rest["a"]["b"], torch.zeros(2))
    assert torch.equal(fresh.rest["a.b"], torch.ones(2))


def test_one_tensor_remembered_twice_is_saved(tmp_path: Path) -> None:
    one = torch.arange(3.0)
    fresh = travelled(begun([one, one]), tmp_path)
    assert all(torch.equal(t, one) for t in fresh.rest)
