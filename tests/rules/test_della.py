"""DELLA: its probabilities, its draws, and what is done with what they leave."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.carried import nbytes
from bench.method.recorded import RecordedTask
from bench.method.tools.sparsify import draw
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, Models, chain, close, property_test, rule, seeds


@property_test
@given(seeds, st.floats(0, 0.99), st.floats(0, 0.99))
def test_probabilities_rise_with_the_rank_in_a_row(seed: int, p: float, window: float) -> None:
    x = Models.draw(seed).thetas[0].tensors()["a"]
    q = rule("della", p=p, window=window).stays(x)  # type: ignore[attr-defined]
    for row, got in zip(x, q, strict=True):
        ranked = sorted(range(len(row)), key=lambda i: abs(float(row[i])))
        for r, i in enumerate(ranked):
            expected = 1 - p + window * (r / (len(row) - 1) - 0.5)
            assert float(got[i]) == pytest.approx(min(max(expected, 0), 1), abs=1e-12)


def test_a_vector_is_one_row_a_convolution_has_a_row_an_output_and_one_entry_has_no_rank() -> None:
    della = rule("della", p=0.4, window=0.2)
    stays = della.stays  # type: ignore[attr-defined]
    assert stays(torch.tensor([3.0, -1.0, 2.0])).tolist() == pytest.approx([0.7, 0.5, 0.6])
    assert stays(torch.arange(8.0).view(2, 2, 2, 1))[1].flatten().tolist() == pytest.approx(
        [0.5, 17 / 30, 19 / 30, 0.7]
    )
    assert stays(torch.tensor([[5.0], [6.0]])).flatten().tolist() == pytest.approx([0.6, 0.6])


def test_the_share_drawn_is_the_probability_of_each_entry() -> None:
    q = Weights.of({"w": torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).repeat(4000)})
    task = RecordedTask(1, q, q, q, q)
    kept = draw(q, q, lambda name: task.rng(name)).view(-1, 5).float().mean(0)
    torch.testing.assert_close(kept, torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]), rtol=0, atol=0.03)


def test_on_average_over_draws_a_thinned_vector_is_the_whole_one() -> None:
    models, total = Models.draw(0), Models.draw(0).theta_0.zeros()
    tau = models.thetas[0] - models.theta_0
    della = rule("della", p=0.5, window=0.4)
    for seed in range(1500):
        task = RecordedTask(1, models.theta_0, models.theta_0, models.theta_0, models.thetas[0], seed=seed)
        total = total + della.thinned(task)  # type: ignore[attr-defined]
    assert close(total / 1500, tau, 0.07)


@property_test
@given(seeds)
def test_what_is_kept_is_elected_and_fused_as_by_hand(seed: int) -> None:
    models = Models.draw(seed)
    della = rule("della", p=0.4, lam=0.9)
    served = chain(della, models, "pretrained")
    columns = zip(*(kept.vector.tolist() for kept in della.kept), strict=True)  # type: ignore[attr-defined]
    fused = []
    for column in columns:
        sign = 1 if sum(column) >= 0 else -1
        agree = [x for x in column if x * sign > 0]
        fused.append(sum(agree) / max(1, len(agree)))
    assert close(served[-1], models.theta_0.map(lambda v: v + 0.9 * v.new_tensor(fused)), 1e-12)


def test_linear_adds_them_with_one_sum_carried_and_drops_the_same_entries() -> None:
    models = Models.draw(1)
    elected, linear = rule("della"), rule("della", then="linear", lam=1.0)
    chain(elected, models, "pretrained")
    served = chain(linear, models, "pretrained")
    kept = elected.kept  # type: ignore[attr-defined]
    assert close(served[-1], models.theta_0 + sum(kept[1:], kept[0]))
    assert (nbytes(elected), nbytes(linear)) == (4 * models.theta_0.nbytes, models.theta_0.nbytes)


def test_nothing_dropped_is_task_arithmetic() -> None:
    models = Models.draw(2)
    options = {"p": 0.0, "window": 0.0, "then": "linear", "lam": 0.3}
    for rescale in ("probability", "l1"):
        got = chain(rule("della", rescale=rescale, **options), models, "pretrained")[-1]
        assert close(got, chain(rule("task_arithmetic"), models, "pretrained")[-1])


def test_l1_restores_the_norm_of_every_tensor() -> None:
    models = Models.draw(3)
    della = rule("della", rescale="l1", p=0.6)
    task = models.task(1, models.theta_0)
    before, after = (models.thetas[0] - models.theta_0), della.thinned(task)  # type: ignore[attr-defined]
    for (_, x), (_, y) in zip(before.items(), after.items(), strict=True):
        assert float(y.abs().sum()) == pytest.approx(float(x.abs().sum()))
        assert int((y == 0).sum()) > 0


def test_named() -> None:
    assert REGISTRY.resolve("della_linear").rule_options["then"] == "linear"
    assert REGISTRY.resolve("della").start == "pretrained"
