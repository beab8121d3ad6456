"""A plugin that writes into what it is handed is caught, by whatever way it writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method import Rule, Task, Weights, state
from bench.method.protect import ChangedInPlaceError, checksum, unchanged
from bench.method.recorded import Recording, merge_recorded, merge_stream
from tests.helpers.toy import Models, noise, property_test, rule

WRITES: dict[str, Callable[[torch.Tensor], object]] = {
    "in place": lambda v: v.mul_(0.5),
    "to the same numbers": lambda v: v.mul_(1),
    "by way of data": lambda v: v.data.add_(1),
    "by way of NumPy": lambda v: v.numpy().__setitem__(3, 7.0),
    "into a view": lambda v: v[2:4].zero_(),
}


@pytest.mark.parametrize("write", WRITES)
def test_every_way_of_writing_is_seen_and_named(write: str) -> None:
    served, other = noise(0), noise(1)
    with (
        pytest.raises(ChangedInPlaceError, match=r"rule x changed task.served in place; work on a copy"),
        unchanged("rule x", {"task.trained": other, "task.served": served}),
    ):
        WRITES[write](served.vector)


def test_reading_is_no_change() -> None:
    served = noise(0)
    with unchanged("rule x", {"task.served": served}):
        assert float((served * 2 + 1).sum()) != 0
        with torch.inference_mode():
            inside = served.detach()
    with unchanged("rule x", {"task.served": inside}):
        assert inside.norm() > 0


def test_a_plugin_that_fails_after_it_wrote_fails_for_its_own_reason() -> None:
    served = noise(0)

    def fail() -> None:
        with unchanged("rule x", {"task.served": served}):
            served.vector.zero_()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


@given(
    size=st.integers(1, 20_000), place=st.integers(0, 2**31), dtype=st.sampled_from(["float32", "float64", "bfloat16"])
)
@property_test
def test_a_checksum_changes_with_one_number_and_not_with_where_it_lies(size: int, place: int, dtype: str) -> None:
    x = torch.randn(size + 1, generator=torch.Generator().manual_seed(place)).to(getattr(torch, dtype))
    aside = torch.cat([x[:1], x])[1:]
    assert checksum(x[1:]) == checksum(x[1:].clone())  # at an odd offset too
    assert checksum(aside) == checksum(x)
    before = checksum(x)
    x[place % (size + 1)] += 1
    assert checksum(x) != before


def test_a_checksum_sees_long_vectors_turned_round() -> None:
    x = torch.randn(40_000)
    assert checksum(x.flip(0)) != checksum(x)


class Blend(Rule):
    """Writes into the memory of one of the things that it holds."""

    key = "blend"
    into = "served"

    def merge(self, task: Task) -> Weights:
        getattr(task, self.into).vector.add_(task.trained.vector).mul_(0.5)
        return getattr(task, self.into)


@pytest.mark.parametrize("name", ["served", "trained", "start", "pretrained"])
def test_a_merge_of_recorded_weights_is_watched_too(name: str) -> None:
    models, blend = Models.draw(0), Blend()
    blend.into = name
    stream = merge_stream(blend, models.theta_0, map(Recording, models.thetas))
    with pytest.raises(ChangedInPlaceError, match="rule blend changed task"):
        list(stream)


def test_by_products_are_watched() -> None:
    class Scale(Rule):
        key = "scale"

        def merge(self, task: Task) -> Weights:
            task.recorded["grad_sq"][0].vector.clamp_(max=1e-4)
            return task.trained

    known = [Recording(w, recorded={"grad_sq": [noise(5) ** 2]}) for w in Models.draw(0).thetas]
    with pytest.raises(ChangedInPlaceError, match=r"changed task\.recorded\['grad_sq'\]\[0\] in place"):
        list(merge_stream(Scale(), noise(0), known))


class Average(Rule):
    """Keeps a handed vector as its state, or gives its state away, and goes on writing into it."""

    key = "keeps"
    mean: Weights = state()
    alias = True

    def merge(self, task: Task) -> Weights:
        if task.t == 1:
            self.mean = task.trained if self.alias else task.trained.detach()
        else:
            self.mean.vector.lerp_(task.trained.vector, 1 / task.t)
        return self.mean


def test_a_state_that_is_handed_weights_is_caught_where_they_are_handed_again() -> None:
    models = Models.draw(0)
    with pytest.raises(ChangedInPlaceError, match=r"changed task\.(served|start) in place"):
        merge_recorded(Average(), models.theta_0, models.thetas, start="previous")


def test_a_rule_may_serve_its_own_state_and_go_on_writing_into_it() -> None:
    models, keeps = Models.draw(0), Average()
    keeps.alias = False
    served = merge_recorded(keeps, models.theta_0, models.thetas)
    mean = merge_recorded(rule("average"), models.theta_0, models.thetas)
    for one, other in zip(served, mean, strict=True):
        assert (one - other).norm() < 1e-12 * other.norm()
