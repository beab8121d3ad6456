"""The exponential average of TIME: its weights, and its step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.method.carried import nbytes
from tests.helpers.toy import REGISTRY, Models, chain, close, property_test, rule, seeds


@property_test
@given(seeds, st.floats(0, 0.99))
def test_weights_fall_exponentially_and_theta_0_has_what_is_left(seed: int, decay: float) -> None:
    models = Models.draw(seed)
    for t, got in enumerate(chain(rule("ema", decay=decay), models), 1):
        expected = models.theta_0 * decay**t
        for i, theta in enumerate(models.thetas[:t], 1):
            expected = expected + theta * ((1 - decay) * decay ** (t - i))
        assert close(got, expected, 1e-12)


def test_its_step_is_comas_after_the_first_task() -> None:
    models = Models.draw(0)
    task = models.task(3, models.thetas[1])
    assert rule("ema", decay=0.6).merge(task).digest() == rule("coma", alpha=0.4).merge(task).digest()
    first = models.task(1, models.theta_0)
    assert not close(rule("ema", decay=0.6).merge(first), rule("coma", alpha=0.4).merge(first), 1e-3)


def test_it_is_marked_as_a_reconstruction_and_carries_nothing() -> None:
    ema = REGISTRY.resolve("ema")
    assert (ema.start, ema.status, ema.rule.reconstruction) == ("merged", "reconstruction", True)
    kept = rule("ema")
    chain(kept, Models.draw(0))
    assert nbytes(kept) == 0
