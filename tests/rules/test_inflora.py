"""InfLoRA: where A lies and what is remembered, against full singular value decompositions of NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bench.model.adapters.lora import LoRA
from tests.helpers.toy import SHAPES, Models, noise, trainer


def begun(models: Models, **options: Any) -> Any:
    inflora = trainer("inflora", **options)
    inflora.begin(models.theta_0)
    return inflora


def remembered(grams: list[np.ndarray], threshold: float) -> np.ndarray:
    """The authors' rule: shares of squared singular values, one direction after the other."""
    M = np.zeros((len(grams[0]), 0))
    for t, G in enumerate(grams):
        total = (np.linalg.svd(G)[1] ** 2).sum()
        U, s, _ = np.linalg.svd(G - M @ M.T @ G)
        if t == 0:
            M = U[:, : max(1, int((np.cumsum(s**2) / total < threshold).sum()))]
            continue
        held, more = (total - (s**2).sum()) / total, 0
        while held < threshold and more < len(s):
            held += s[more] ** 2 / total
            more += 1
        M = np.hstack([M, U[:, :more]])
    return M


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_what_is_remembered_is_the_authors_span(threshold: float) -> None:
    models = Models.draw(0)
    inflora = begun(models, threshold=threshold)
    for t in range(1, 4):
        inflora.learnt(models.task(t, models.theta_0))
        for name in ("a", "b"):
            M = inflora.M[name].numpy()
            expected = remembered([models.grams(i)[name].sum.numpy() for i in range(1, t + 1)], threshold)
            assert M.shape == expected.shape
            np.testing.assert_allclose(M.T @ M, np.eye(M.shape[1]), atol=1e-9)
            np.testing.assert_allclose(M @ M.T, expected @ expected.T, atol=1e-8)
    assert "c" not in inflora.M


def test_a_is_the_leading_part_of_what_is_new_in_the_tasks_inputs() -> None:
    models = Models.draw(1)
    inflora = begun(models, threshold=0.5)
    inflora.learnt(models.task(1, models.theta_0))
    chosen = inflora.directions(models.task(2, models.theta_0))
    for name in ("a", "b"):
        M, G = inflora.M[name].numpy(), models.grams(2)[name].sum.numpy()
        U, s, _ = np.linalg.svd(G - M @ M.T @ G)
        rows = chosen[name].numpy()
        rank = int((s > 1e-6 * s[0]).sum())
        np.testing.assert_allclose(np.abs(np.diag(rows[:rank] @ U[:, :rank])), 1 / np.sqrt(3), rtol=1e-6)
        np.testing.assert_allclose(rows @ M, 0, atol=1e-9)
        np.testing.assert_allclose(rows[rank:], 0)


def test_before_anything_is_remembered_a_is_the_inputs_own_leading_directions() -> None:
    models = Models.draw(2)
    rows = begun(models).directions(models.task(1, models.theta_0))["a"]
    G = models.grams(1)["a"].sum
    values = torch.linalg.eigvalsh(G).flip(0)
    torch.testing.assert_close((rows @ G @ rows.T).diagonal() * 3, values, rtol=1e-8, atol=1e-8)


def test_lora_takes_as_many_rows_as_its_rank_and_draws_the_others() -> None:
    theta = noise(0)
    theta = type(theta).of({name: theta.tensors()[name] for name in ("a", "b")})
    factors = {n: (torch.ones(3, SHAPES[n][1]).double(), torch.zeros(SHAPES[n][0], 3).double()) for n in ("a", "b")}
    lora = LoRA(factors, theta, 1.0, "B")
    lora.hold({"a": torch.full((2, 5), 2.0).double()})
    assert lora.A[0][0].tolist() == [[2.0] * 5, [2.0] * 5, [0.0] * 5]
    assert lora.A[1][0].tolist() == [[1.0] * 4] * 3
    lora.hold({"b": torch.arange(5.0).double()[:, None].repeat(1, 4)})
    assert lora.A[1][0][:, 0].tolist() == [0.0, 1.0, 2.0]
    assert lora.weights().digest() == theta.digest()
