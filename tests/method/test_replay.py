"""The reservoir of labelled images: who is in it, and that a step draws from it without repetition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.method.tools.replay import Replay
from bench.method.weights import Weights
from tests.helpers.toy import noise
from tests.helpers.toy_step import ToyStep


@dataclass
class Told:
    """Task t: images whose every pixel is their number in the stream, class (number mod 4) of the task's four."""

    t: int
    numbers: range
    seed: int = 0
    trained: Weights | None = None

    def batches(self, size: int, steps: int, labelled: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        x = torch.tensor(list(self.numbers))
        yield x[:, None, None, None].repeat(1, 1, 2, 2), x % 4

    def columns(self, t: int) -> range:
        return range(4 * t - 4, 4 * t)

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.t])

    def logits(self, weights: Weights, x: Tensor, heads: str) -> Tensor:
        """The image's number plus a hundredth of the column."""
        return x[:, 0, 0, :1] + torch.arange(4 * self.t) / 100 + 1000 * self.t


def begun(**options: Any) -> Replay:
    replay = Replay(**options)
    replay.begin(noise(0))
    return replay


def test_a_buffer_that_is_not_full_holds_every_image_with_its_class() -> None:
    replay = begun(keep=50)
    replay.fill(Told(1, range(20)))  # type: ignore[arg-type]
    replay.fill(Told(2, range(20, 40)))  # type: ignore[arg-type]
    assert replay.images[:, 0, 0, 0].tolist() == list(range(40))
    assert replay.columns.tolist() == [n % 4 + 4 * (n >= 20) for n in range(40)]
    assert replay.met == 40


def test_images_and_columns_stay_together_where_places_are_taken() -> None:
    replay = begun(keep=7)
    for t in range(1, 5):
        places, new = replay.fill(Told(t, range(20 * t - 20, 20 * t)))  # type: ignore[arg-type]
        assert len(replay.images) == 7
        assert torch.equal(replay.images[places], new)
        for image, column in zip(replay.images[:, 0, 0, 0].tolist(), replay.columns.tolist(), strict=True):
            assert column == image % 4 + 4 * (image // 20)


def test_every_image_has_the_same_chance_whenever_it_came() -> None:
    kept = torch.zeros(40)
    for seed in range(3000):
        replay = begun(keep=10)
        replay.fill(Told(1, range(25), seed))  # type: ignore[arg-type]
        replay.fill(Told(2, range(25, 40), seed))  # type: ignore[arg-type]
        kept[replay.images[:, 0, 0, 0]] += 1
    expected, deviation = 3000 * 10 / 40, (3000 * 0.25 * 0.75) ** 0.5
    assert float((kept - expected).abs().max()) < 4 * deviation


def test_a_draw_repeats_no_image_and_takes_all_of_a_small_buffer() -> None:
    replay, step = begun(keep=10, minibatch=6), ToyStep(2, noise(1), noise(1))
    replay.fill(Told(1, range(30)))  # type: ignore[arg-type]
    for _ in range(5):
        places = replay.draw(step).tolist()
        assert len(set(places)) == len(places) == 6
        assert set(places) <= set(range(10))
    small = begun(keep=4, minibatch=6)
    small.fill(Told(1, range(30)))  # type: ignore[arg-type]
    assert sorted(small.draw(step).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("field", ["keep", "minibatch"])
def test_a_buffer_of_nothing_is_no_option(field: str) -> None:
    assert Replay.options()[field].metadata["bounds"] == {"ge": 1}
