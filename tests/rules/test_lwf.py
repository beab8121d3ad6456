"""LwF: the distillation term, written out row by row."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers.toy import Models, noise, trainer
from tests.helpers.toy_step import ToyStep


def softened(row: list[float], T: float) -> list[float]:
    powers = [math.exp(z / T) for z in row]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize(("alpha", "T"), [(0.5, 2.0), (3.0, 1.0), (1.0, 4.0)])
def test_lwfs_term_is_the_mean_divergence_of_softened_old_logits(alpha: float, T: float) -> None:
    models = Models.draw(0)
    step = ToyStep(3, models.thetas[2], models.thetas[1])
    teacher, student = (step.logits(w, step.pixels, "old").tolist() for w in (step.served, step.weights))
    rows = [
        sum(p * math.log(p / q) for p, q in zip(softened(old, T), softened(new, T), strict=True))
        for old, new in zip(teacher, student, strict=True)
    ]
    assert len(teacher[0]) == 8  # the heads of two tasks, one softmax
    lwf = trainer("lwf", alpha=alpha, T=T)
    assert float(lwf.loss(step)) == pytest.approx(alpha * T**2 * sum(rows) / len(rows), rel=1e-9)


def test_lwf_adds_nothing_at_the_first_task_nor_where_the_model_is_its_teacher() -> None:
    models = Models.draw(1)
    assert trainer("lwf").loss(ToyStep(1, models.thetas[0], models.theta_0)) == 0.0
    assert float(trainer("lwf").loss(ToyStep(2, models.thetas[0], models.thetas[0]))) == pytest.approx(0, abs=1e-12)


def test_only_the_student_is_taught() -> None:
    teacher, student = (noise(i).map(lambda v: v.requires_grad_()) for i in (1, 2))
    trainer("lwf").loss(ToyStep(2, student, teacher)).backward()
    assert teacher.vector.grad is None
    assert student.vector.grad is not None
    assert bool(student.vector.grad.any())


def test_the_gradients_size_hardly_depends_on_a_high_temperature() -> None:
    """What T^2 is for: without it the gradient would fall by 100 from T = 10 to T = 100."""
    norms = []
    for T in (10.0, 100.0):
        student = noise(2).map(lambda v: v.requires_grad_())
        trainer("lwf", T=T).loss(ToyStep(3, student, noise(1))).backward()
        assert student.vector.grad is not None
        norms.append(float(torch.linalg.vector_norm(student.vector.grad)))
    assert norms[1] == pytest.approx(norms[0], rel=0.3)
