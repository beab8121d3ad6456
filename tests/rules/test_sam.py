"""SAM and ASAM: where the ascent step ends, written out, and the loop that takes it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from bench.common.seeds import derive
from bench.config.schema import ProtocolConfig
from bench.data.stream import Stream
from bench.method import Trainer
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.model.heads import new_head
from bench.run.train import Learnt, _batches, train
from tests.helpers.toy import noise, trainer


def test_sam_climbs_by_rho_along_the_gradient() -> None:
    theta, g = noise(1), noise(2)
    moved = trainer("sam", rho=0.3).ascent(theta, g) - theta
    assert moved.norm() == pytest.approx(0.3, rel=1e-12)
    assert moved.dot(g) == pytest.approx(0.3 * g.norm(), rel=1e-12)
    assert trainer("sam").ascent(theta, g.zeros()).digest() == theta.digest()


def test_asam_is_its_equation_entry_by_entry_and_does_not_see_scale() -> None:
    theta, g, eta, rho = noise(1), noise(2), 0.01, 0.5
    w, gradient = theta.vector.tolist(), g.vector.tolist()
    norm = sum(((abs(a) + eta) * b) ** 2 for a, b in zip(w, gradient, strict=True)) ** 0.5
    expected = [a + rho * (abs(a) + eta) ** 2 * b / norm for a, b in zip(w, gradient, strict=True)]
    got = trainer("asam", rho=rho, eta=eta).ascent(theta, g)
    torch.testing.assert_close(got.vector, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    asam = trainer("asam", eta=0.0)
    once, scaled = asam.ascent(theta, g), asam.ascent(theta * 4, g / 4)  # the same function in other units
    assert ((once * 4) - scaled).norm() < 1e-12 * scaled.norm()


def trained(who: Trainer, backbone: Backbone, stream: Stream, protocol: ProtocolConfig) -> Learnt:
    who.begin(backbone.pretrained)
    return train(backbone, stream, stream.tasks[:1], who, backbone.pretrained, protocol, 0)


def test_the_loop_takes_the_gradient_at_the_end_of_the_ascent(
    backbone: Backbone, stream: Stream, protocol: ProtocolConfig
) -> None:
    """The same steps written out: loss and gradient at theta, climb, loss and gradient there."""
    [task], config, rho = stream.tasks[:1], protocol.train, 0.5
    lora = backbone.adapter(backbone.pretrained, "AB", derive("lora", 0, task.content))
    head = new_head(5, backbone.dim, protocol.head.init_std, "cpu", 0, task.content)
    groups = [{"params": [head.weight.requires_grad_(), head.bias.requires_grad_()], "lr": config.head_lr},
              {"params": lora.parameters, "lr": config.lr}]  # fmt: skip
    optimiser = torch.optim.AdamW(groups, weight_decay=0)
    batches = list(_batches(task.train, config, 0, task.content))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=len(batches))
    for batch in batches:
        x, y = stream.train_images[batch], stream.train_columns[batch]
        here = lora.weights()
        [g] = torch.autograd.grad(cross_entropy(head(backbone.features(here, x)), y), here.vector, retain_graph=True)
        there = Weights(here.vector + rho * g / g.norm(), here.layout)
        optimiser.zero_grad()
        cross_entropy(head(backbone.features(there, x)), y).backward()
        optimiser.step()
        cosine.step()
    sam, plain = (trained(who, backbone, stream, protocol) for who in (trainer("sam", rho=rho), Trainer()))
    moved = (sam.weights - plain.weights).norm()
    assert (lora.weights().detach() - sam.weights).norm() < 1e-2 * moved
    torch.testing.assert_close(sam.heads[0].weight, head.weight.detach(), rtol=0, atol=1e-4)


def test_sam_without_a_step_is_plain_training(backbone: Backbone, stream: Stream, protocol: ProtocolConfig) -> None:
    still, plain = (trained(who, backbone, stream, protocol) for who in (trainer("sam", rho=0.0), Trainer()))
    assert still.weights.digest() == plain.weights.digest()
    assert still.heads[0].digest() == plain.heads[0].digest()
