"""DOGE-TA against reference numbers, and its parts against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.recorded import merge_recorded
from bench.method.tools.minimise import minimise
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, Golden, Models, chain, close, noise, property_test, rule, seeds

DOGE: Any = REGISTRY.rules["doge"]
Layers: Any = DOGE.merge.__globals__["Layers"]
shared_basis: Callable[[torch.Tensor, int], torch.Tensor] = DOGE.merge.__globals__["shared_basis"]


def test_golden_doge_ta(golden: Callable[[str], Golden]) -> None:
    g, told = golden("doge_ta"), list[dict[str, float]]()
    hparams = g.meta["hparams"]

    def merged_part(prefix: str) -> Weights:
        return Weights.of({name: g.part(prefix).tensors()[name] for name in hparams["merged"]})

    theta_0, taus = merged_part("theta0"), [merged_part(f"tau/{i}") for i in range(hparams["T"])]
    options = {"lam": hparams["lamda"], "keep": hparams["K"] / 100, "subspace": hparams["subspace"],
               "steps": hparams["steps"], "lr": hparams["lr"]}  # fmt: skip
    steps = merge_recorded(rule("doge", **options), theta_0, [theta_0 + tau for tau in taus], scalars=told)
    g.check(steps[-1], merged_part("out/theta"))
    for name, Delta in g.part("out/delta").items():
        layers = Layers(torch.stack([tau.tensors()[name] for tau in taus])[:, None], 0.07, hparams["subspace"])
        g.check(Weights.of({name: layers.learnt(hparams["steps"], hparams["lr"])[0]}), Weights.of({name: Delta}))
    whole, merged = g.part("out/theta").tensors(), set(hparams["merged"])
    assert all(torch.equal(v, whole[n]) for n, v in g.part("theta0").items() if n not in merged)
    assert all(row["loss_after"] < row["loss_before"] for row in told)


@property_test
@given(seeds, st.integers(1, 5), st.booleans())
def test_the_loss_its_gradient_and_what_the_projection_leaves(seed: int, T: int, tall: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    tau = torch.randn(T, 2, *((16, 12) if tall else (12, 16)), generator=generator, dtype=torch.float64)
    layers = Layers(tau, 0.07, 6)
    Delta = torch.randn(tau.shape[1:], generator=generator, dtype=torch.float64, requires_grad=True)
    naive = torch.zeros((), dtype=torch.float64)
    for layer in range(2):
        lam = [0.07 / t.norm() for t in tau[:, layer]]
        pull = sum(weight * t for weight, t in zip(lam, tau[:, layer], strict=True))
        for t in tau[:, layer]:
            naive = naive + ((t * (t - pull - Delta[layer] * sum(lam))).sum(1) ** 2).sum()
    torch.testing.assert_close(layers.loss(Delta, 0), naive)
    (gradient,) = torch.autograd.grad(naive, Delta)
    left = layers.project(gradient)
    assert layers.B.shape == (2, tau.shape[2], 2)
    torch.testing.assert_close(layers.B.mT @ layers.B, torch.eye(2).double().expand(2, 2, 2))
    assert float((layers.B.mT @ left).abs().max()) < 1e-10 * float(gradient.abs().max())
    torch.testing.assert_close(layers.project(left), left)


def test_the_shared_basis_is_what_all_tasks_share_and_knows_no_null_space() -> None:
    """Every task's strongest direction is e_0, the others are its own; LoRA leaves the rest of the rank empty."""
    tau = torch.zeros(3, 1, 12, 12, dtype=torch.float64)
    for k in range(3):
        tau[k, 0, 0, 2 * k], tau[k, 0, k + 1, 2 * k + 1] = 5.0, 3.0
    B = shared_basis(tau, 6)[0]
    assert B.shape == (12, 2)
    assert abs(float(B[0, 0])) == pytest.approx(1)
    assert not bool(B[4:].any())
    alone = shared_basis(tau[:1], 6)[0]  # its two strongest directions, in place of any two
    torch.testing.assert_close(alone.abs(), torch.eye(12, 2, dtype=torch.float64))
    many = shared_basis(
        torch.randn(20, 1, 5, 5, dtype=torch.float64), 6
    )  # more tasks than rank: still a direction each
    assert many.shape == (1, 5, 1)
    assert float(many.norm()) == pytest.approx(1)


def test_a_layer_without_task_vectors_stays_and_vectors_do_too() -> None:
    models = Models.draw(0)
    kept = [theta.with_tensors({"b": models.theta_0.tensors()["b"]}) for theta in models.thetas]
    got = merge_recorded(rule("doge", steps=20), models.theta_0, kept)[-1].tensors()
    for name in ("b", "c"):
        assert torch.equal(got[name], models.theta_0.tensors()[name])
    assert not torch.equal(got["a"], models.theta_0.tensors()["a"])
    only = Weights.of({"c": models.theta_0.tensors()["c"]})
    assert torch.equal(merge_recorded(rule("doge"), only, [only * 2])[0].vector, only.vector)


def test_a_task_that_left_a_layer_alone_has_no_part_in_it() -> None:
    models = Models.draw(1, T=3)
    still = models.thetas[1].with_tensors({"a": models.theta_0.tensors()["a"]})
    got = merge_recorded(rule("doge", steps=20, keep=1.0), models.theta_0, [models.thetas[0], still, models.thetas[2]])
    tau = torch.stack([(models.thetas[i] - models.theta_0).tensors()["a"] for i in (0, 2)])
    layers = Layers(torch.stack([tau[0], torch.zeros_like(tau[0]), tau[1]])[:, None], 0.07, 6)
    Delta = layers.learnt(20, 1e-4)[0]
    expected = sum(0.07 / t.norm() * (t + Delta) for t in tau)
    torch.testing.assert_close((got[-1] - models.theta_0).tensors()["a"], expected)


def test_without_steps_it_is_trimmed_task_arithmetic() -> None:
    models = Models.draw(2)
    got = merge_recorded(rule("doge", steps=0), models.theta_0, models.thetas)[-1] - models.theta_0
    matrices = [Weights.of({n: (theta - models.theta_0).tensors()[n] for n in ("a", "b")}) for theta in models.thetas]
    expected = matrices[0].zeros()
    for tau in matrices:
        cut = tau.vector.abs().sort().values[50 - 15 - 1]  # 30 % of 50 numbers are larger than the smallest kept
        mask = tau.map(lambda v, cut=cut: (v.abs() >= cut).double())  # type: ignore[misc]
        assert int(mask.vector.sum()) == 16
        expected = expected + tau * mask * tau.spread(0.07 / tau.norms())
    assert close(Weights.of({n: got.tensors()[n] for n in ("a", "b")}), expected)


@property_test
@given(seeds, st.permutations(range(4)))
def test_the_order_does_not_matter_and_one_task_is_finite(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    one, other = (merge_recorded(rule("doge", steps=10), models.theta_0, thetas)
                  for thetas in (models.thetas, [models.thetas[i] for i in order]))  # fmt: skip
    assert close(one[-1], other[-1], 1e-7)
    assert len(chain(rule("doge", steps=3), models)) == 4


def test_minimise_steps_along_the_projected_gradient() -> None:
    """A direction that is projected away never moves; the others move as if it were not there."""
    target = noise(0).vector[:6]
    free = torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64)

    def bowl(a: torch.Tensor, step: int) -> torch.Tensor:
        return ((a - target) ** 2).sum()

    got = minimise(bowl, torch.zeros(6, dtype=torch.float64), 30, 0.1, lambda g: g * free)
    plain = minimise(bowl, torch.zeros(6, dtype=torch.float64), 30, 0.1)
    assert torch.equal(got, plain * free)
