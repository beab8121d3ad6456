"""Rules tuned on unlabelled images: whose images, no label, no test image, and that the entropy falls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.common.cache import Store
from bench.common.errors import UserError
from bench.config.schema import ProtocolConfig
from bench.data.stream import Stream
from bench.method.carried import nbytes
from bench.method.recorded import merge_recorded
from bench.method.tools.entropy import entropy
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.model.heads import new_head
from bench.run.live_task import LiveTask
from tests.helpers.toy import REGISTRY, Models, Toy, chain

KEYS = sorted(k for k, r in REGISTRY.rules.items() if any(f.metadata["images"] for f in r.states().values()))
every_one = pytest.mark.parametrize("key", KEYS)
Live = Callable[..., LiveTask]


def test_which_rules_keep_images() -> None:
    assert {"adamerging", "adarank"} <= set(KEYS)
    assert all(REGISTRY.rules[key].data == "unlabelled" for key in KEYS)


def tuned(key: str, **options: Any) -> Any:
    return REGISTRY.rules[key](**{"steps": 4, **options})


@pytest.fixture
def live(stream: Stream, backbone: Backbone, protocol: ProtocolConfig, tmp_path: Path) -> Live:
    """Task t of digits at weights that were moved rather than trained, with drawn heads."""

    def at(t: int, data: str = "unlabelled", on: Stream = stream) -> LiveTask:
        theta_0 = backbone.pretrained
        generator = torch.Generator().manual_seed(t)
        moved = theta_0.map(lambda v: v + 0.05 * torch.randn(v.shape, generator=generator))
        heads = [new_head(5, backbone.dim, 0.3, "cpu", i) for i in range(1, t + 1)]
        return LiveTask(data, on, on.tasks[t - 1], backbone, protocol, heads, 0, Store(tmp_path), theta_0, theta_0,
                        theta_0, moved, {})  # fmt: skip

    return at


def through(rule: Any, *tasks: LiveTask) -> Weights:
    rule.begin(tasks[0].pretrained)
    for task in tasks:
        served = rule.merge(task)
    return served


def test_entropy_is_that_of_the_distribution_and_finite_for_certain_predictions() -> None:
    p = torch.tensor([[0.25, 0.25, 0.5], [0.1, 0.2, 0.7]], dtype=torch.float64)
    torch.testing.assert_close(entropy(p.log()), torch.distributions.Categorical(p).entropy().mean())
    certain = torch.tensor([[0.0, 1e4]], requires_grad=True)
    entropy(certain).backward()
    assert certain.grad is not None
    assert not bool(certain.grad.any())
    assert float(entropy(torch.randn(3, 1))) == 0  # a task of one class


@every_one
def test_no_label_is_read(key: str, live: Live, stream: Stream) -> None:
    """The labels of the training images, shuffled, change no bit; and asking for one is refused."""
    first = through(tuned(key), live(1), live(2)).digest()
    shuffled = Stream.__new__(Stream)
    shuffled.__dict__ |= stream.__dict__
    order = torch.randperm(len(stream.train_columns), generator=torch.Generator().manual_seed(0))
    shuffled.train_columns = stream.train_columns[order]
    assert through(tuned(key), live(1, on=shuffled), live(2, on=shuffled)).digest() == first
    with pytest.raises(PermissionError, match="may not read labels"):
        next(live(1).batches(4, 1, labelled=True))

    class Blind(Toy):
        def batches(self, size: int, steps: int, labelled: bool = False) -> Any:
            assert not labelled
            return super().batches(size, steps)

        def fisher(self, kind: str = "empirical", at: Weights | None = None) -> Weights:
            raise AssertionError("reads a Fisher")

        accuracy = fisher  # type: ignore[assignment]

    models, rule = Models.draw(0), tuned(key)
    rule.begin(models.theta_0)
    rule.merge(Blind(1, *[models.theta_0] * 3, models.thetas[0]))


@every_one
def test_the_buffer_holds_training_images_of_each_task_and_its_bytes_are_counted(
    key: str, live: Live, stream: Stream
) -> None:
    rule = tuned(key, keep=24)
    through(rule, live(1), live(2))
    image = stream.train_images[0].numel()
    assert [tuple(b.shape) for b in rule.buffer] == [(24, *stream.train_images.shape[1:])] * 2
    assert all(b.dtype == torch.uint8 for b in rule.buffer)
    assert nbytes(rule, images=True) == 2 * 24 * image
    assert nbytes(rule) == 2 * 24 * image + 2 * live(1).pretrained.nbytes
    for kept, task in zip(rule.buffer, stream.tasks, strict=True):
        own = {bytes(x.numpy()) for x in stream.train_images[task.train]}
        assert all(bytes(x.numpy()) in own for x in kept)
    through(rule, live(1))
    assert len(rule.buffer) == 1  # a new run begins with none


@every_one
def test_the_current_images_alone_need_no_buffer_and_give_another_answer(key: str, live: Live) -> None:
    rule = tuned(key, images="current")
    alone = through(rule, live(1), live(2))
    assert nbytes(rule, images=True) == 0
    assert rule.buffer == []
    assert alone.digest() != through(tuned(key), live(1), live(2)).digest()
    one = [through(tuned(key, images=images), live(1)).digest() for images in ("current", "buffer")]
    assert one[0] == one[1]


@every_one
def test_each_step_draws_a_batch_of_every_task(key: str, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, seen = tuned(key, batch=8, keep=20), list[Tensor]()
    forward = LiveTask.logits

    def spy(task: LiveTask, weights: Weights, x: Tensor, heads: str | int = "current") -> Tensor:
        if heads == "seen":
            seen.append(x)
        return forward(task, weights, x, heads)

    monkeypatch.setattr(LiveTask, "logits", spy)
    through(rule, live(1), live(2))
    assert [len(x) for x in seen] == [16] * 4  # one forward pass for both tasks
    kept = [bytes(x.numpy()) for x in rule.buffer[0]]
    drawn = [[kept.index(bytes(image.numpy())) for image in x[:8]] for x in seen]
    assert all(len(set(step)) == 8 for step in drawn)
    assert len({tuple(step) for step in drawn}) == 4
    assert len({i for step in drawn for i in step}) > 8


@every_one
def test_a_buffer_smaller_than_a_batch_is_used_whole(key: str, live: Live) -> None:
    rule = tuned(key, keep=3)
    assert bool(torch.isfinite(through(rule, live(1), live(2)).vector).all())
    assert [len(b) for b in rule.buffer] == [3, 3]


@every_one
def test_the_entropy_falls_for_both_tasks(key: str, live: Live, stream: Stream) -> None:
    def measured(weights: Weights) -> float:
        task = live(2)
        with torch.no_grad():
            x = [stream.train_images[t.train[:200]] for t in stream.tasks]
            return sum(float(entropy(task.logits(weights, images, i))) for i, images in enumerate(x, 1))

    task = live(2)
    before = measured(through(tuned(key, steps=0), live(1), live(2)))
    after = measured(through(tuned(key, steps=30, lr=0.02), live(1), task))
    assert after < before - 0.02
    assert task.scalars["merge_steps"] == 30
    assert task.scalars["entropy_last"] < task.scalars["entropy_first"]


@every_one
def test_recorded_weights_have_no_images_and_need_none_without_steps(key: str) -> None:
    models = Models.draw(0)
    with pytest.raises(UserError, match="task 1: the rule reads images"):
        merge_recorded(tuned(key), models.theta_0, models.thetas)
    recorded = merge_recorded(tuned(key, steps=0), models.theta_0, models.thetas)
    assert [w.digest() for w in recorded] == [w.digest() for w in chain(tuned(key, steps=0), models, "pretrained")]
