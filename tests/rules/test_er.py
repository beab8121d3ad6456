"""ER and DER++: their terms written out, and which logits are kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.toy import Models, trainer
from tests.helpers.toy_step import ToyStep
from tests.method.test_replay import Told


def cross_entropy_of(rows: list[list[float]], columns: list[int]) -> float:
    each = [math.log(sum(math.exp(z - row[c]) for z in row)) for row, c in zip(rows, columns, strict=True)]
    return sum(each) / len(each)


def images(n: int) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_ers_term_is_the_cross_entropy_of_what_is_drawn_over_all_classes() -> None:
    models, er = Models.draw(0), trainer("er", weight=0.7, minibatch=5)
    er.images, er.columns = images(9), torch.arange(9) % 8
    step = ToyStep(3, models.thetas[2], models.thetas[1])
    M = np.random.default_rng(0).choice(9, 5, replace=False)
    rows = step.logits(step.weights, er.images[M], "seen").tolist()
    assert len(rows[0]) == 12
    assert float(er.loss(step)) == pytest.approx(0.7 * cross_entropy_of(rows, er.columns[M].tolist()), rel=1e-12)


def test_derpps_terms_are_two_draws_and_unknown_columns_are_not_matched() -> None:
    models, derpp = Models.draw(0), trainer("derpp", alpha=0.4, beta=0.9, minibatch=5)
    derpp.images, derpp.columns = images(9), torch.arange(9) % 8
    derpp.logits = torch.randn(9, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    derpp.logits[:4, 4:] = torch.nan  # kept when there were four classes
    step = ToyStep(3, models.thetas[2], models.thetas[1])
    rng = np.random.default_rng(0)
    first, second = (rng.choice(9, 5, replace=False) for _ in range(2))
    told = step.logits(step.weights, derpp.images[first], "seen").tolist()
    squares = [
        (told[i][c] - float(derpp.logits[m, c])) ** 2
        for i, m in enumerate(first)
        for c in range(8)
        if not (m < 4 and c >= 4)
    ]
    rows = step.logits(step.weights, derpp.images[second], "seen").tolist()
    labels = cross_entropy_of(rows, derpp.columns[second].tolist())
    expected = 0.4 * sum(squares) / len(squares) + 0.9 * labels
    assert float(derpp.loss(step)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("key", ["er", "derpp"])
def test_an_empty_buffer_adds_nothing(key: str) -> None:
    replay = trainer(key)
    replay.begin(Models.draw(0).theta_0)
    assert replay.loss(ToyStep(1, replay.pretrained, replay.pretrained)) == 0.0


def test_logits_stay_with_their_images_as_they_were_stored() -> None:
    derpp = trainer("derpp", keep=6)
    derpp.begin(Models.draw(0).theta_0)
    for t in range(1, 4):
        derpp.learnt(Told(t, range(10 * t - 10, 10 * t)))
        assert derpp.logits.shape == (6, 4 * t)
        for image, row in zip(derpp.images[:, 0, 0, 0].tolist(), derpp.logits, strict=True):
            stored_at = image // 10 + 1
            expected = image + torch.arange(4 * stored_at) / 100 + 1000 * stored_at
            torch.testing.assert_close(row[: 4 * stored_at], expected)
            assert bool(row[4 * stored_at :].isnan().all())
