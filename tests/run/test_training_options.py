"""Fields of a protocol's ``train`` and ``augment`` that no other test sets: each reaches the optimiser."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from bench.config.files import load_dataset_config, shown_image
from bench.config.schema import AugmentConfig, ProtocolConfig, TrainConfig
from bench.data.dataset import Dataset
from bench.data.images import MappedImages, images_on
from bench.data.stream import Stream
from bench.method import Trainer
from bench.model.backbone import Backbone
from bench.run.train import Learnt, _rate, train


def learnt(backbone: Backbone, stream: Stream, protocol: ProtocolConfig, **fields: Any) -> Learnt:
    changed = protocol.model_copy(update={"train": protocol.train.model_copy(update=fields)})
    return train(backbone, stream, stream.tasks[:1], Trainer(), backbone.pretrained, changed, run_seed=0)


def test_multistep_falls_after_its_epochs_however_many_steps_they_have() -> None:
    config = TrainConfig(epochs=10, lr=1, head_lr=1, schedule="multistep", milestones=(5, 8), gamma=0.1)
    rates = [_rate(config, step, 70) for step in range(70)]
    assert rates == pytest.approx([1.0] * 35 + [0.1] * 21 + [0.01] * 14)
    optimiser = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones=[5, 8], gamma=0.1)
    for epoch in range(10):
        assert rates[7 * epoch] == pytest.approx(reference.get_last_lr()[0])
        optimiser.step()
        reference.step()


def test_automatic_warm_up_is_a_tenth_of_the_steps() -> None:
    config = TrainConfig(epochs=1, lr=1, head_lr=1, warmup_steps="auto", schedule="constant")
    assert [_rate(config, step, 40) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert _rate(config, 0, 5) == 1.0  # too few steps for any


@pytest.mark.parametrize("value", [-1, "later", 1.5])
def test_other_warm_ups_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="warmup_steps"):
        TrainConfig(epochs=1, lr=1, head_lr=1, warmup_steps=value)


def test_passes_multiply_the_steps_and_are_epochs_to_a_constant_rate(
    backbone: Backbone, stream: Stream, protocol: ProtocolConfig
) -> None:
    thrice = learnt(backbone, stream, protocol, passes=3, schedule="constant")
    epochs = learnt(backbone, stream, protocol, epochs=3, schedule="constant")
    assert thrice.steps == 3 * math.ceil(len(stream.tasks[0].train) / protocol.train.batch)
    assert thrice.weights.digest() == epochs.weights.digest()


def test_clipping_far_away_changes_nothing_and_close_by_bounds_the_step(
    backbone: Backbone, stream: Stream, protocol: ProtocolConfig
) -> None:
    plain = learnt(backbone, stream, protocol)
    assert learnt(backbone, stream, protocol, clip=1e9).weights.digest() == plain.weights.digest()
    # AdamW does not see a common factor but through its epsilon, so the clip has to be far below that.
    moved = (learnt(backbone, stream, protocol, clip=1e-12).weights - backbone.pretrained).vector.norm()
    assert float(moved) < 0.01 * float((plain.weights - backbone.pretrained).vector.norm())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_and_records_the_gradient_of_the_loss_itself(
    backbone: Backbone, stream: Stream, protocol: ProtocolConfig, precision: str
) -> None:
    full, low = learnt(backbone, stream, protocol), learnt(backbone, stream, protocol, precision=precision)
    assert low.weights.vector.dtype == torch.float32
    assert low.onset["grad_norm"]["0"] == pytest.approx(full.onset["grad_norm"]["0"], rel=0.05)
    assert low.onset["loss"]["0"] == pytest.approx(full.onset["loss"]["0"], rel=0.02)
    assert low.weights.digest() != full.weights.digest()
    task = stream.tasks[0]
    x, y = stream.train_images[task.train], stream.train_columns[task.train]
    before, after = low.onset["loss"]["0"], float(cross_entropy(low.heads[0](backbone.features(low.weights, x)), y))
    assert after < 0.8 * before


def test_augmented_training_is_repeatable_and_another_one(
    digits: Dataset, stream: Stream, protocol: ProtocolConfig
) -> None:
    image = shown_image(protocol, load_dataset_config("digits", []))
    changed = protocol.model_copy(update={"augment": AugmentConfig(crop_scale=(0.5, 1.0), flip=True)})
    runs = [learnt(Backbone(p, image), stream, p).weights.digest() for p in (changed, changed, protocol)]
    assert runs[0] == runs[1] != runs[2]


def test_images_that_do_not_fit_are_read_from_their_map_and_are_the_same(digits: Dataset) -> None:
    near = images_on("cpu", digits.train_images)
    far = images_on("cpu", digits.train_images, cpu_budget=digits.train_images.nbytes - 1)
    assert isinstance(near, torch.Tensor)
    assert isinstance(far, MappedImages)
    assert len(far) == len(near)
    assert far.shape == near.shape
    index = torch.from_numpy(np.random.default_rng(0).permutation(len(near))[:100])
    assert torch.equal(far[index], near[index])
    far[index].zero_()  # a copy: the map behind it is read-only
    assert torch.equal(far[index], near[index])
