"""Trainers, and real runs of trainer, rule and start."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bench.checks.subject import Failed, ServeTrained, Skipped, Subject, finite
from bench.checks.world import World
from bench.method import Trainer


def weights(subject: Subject) -> str | None:
    """Where a trainer takes its loss has theta's layout and is finite, and the gradient reaches theta."""
    trainer, _ = subject.method.build()
    if type(trainer).weights is Trainer.weights:
        raise Skipped("the loss is taken at theta")
    theta_0, theta = subject.worlds.lora.backbone.pretrained.detach(), subject.track().models[0].trained
    started = theta_0.digest()
    trainer.begin(theta_0)
    for at, where in ((theta_0, "at the start of a task"), (theta, "at theta*_1")):
        reached = theta_0.zeros()
        for draw in range(8):
            leaf = at.map(lambda v: v.detach().clone().requires_grad_())
            point = trainer.weights(leaf, theta_0, np.random.default_rng(draw))
            if point.layout != theta_0.layout or point.vector.dtype != theta_0.vector.dtype:
                raise Failed(f"{where}: another layout or dtype than theta's")
            finite([point], where)
            if not point.vector.requires_grad:
                raise Failed(f"{where}: no gradient reaches theta (detached?)")
            (point * point).sum().backward()
            if leaf.vector.grad is None or not bool(torch.isfinite(leaf.vector.grad).all()):
                raise Failed(f"{where}: the gradient in theta is missing or not finite")
            for name, given, bits in (("start", theta_0, started), ("theta", leaf, at.digest())):
                if given.digest() != bits:
                    raise Failed(f"{where}: {name} was written into")
            reached = reached + reached.map(lambda _, g=leaf.vector.grad: g.abs())  # type: ignore[misc]
        if not bool(reached.vector.any()):
            raise Failed(f"{where}: the gradient in theta is zero in 8 draws")
    return None


def penalty(subject: Subject) -> str | None:
    """A trainer's penalty is a finite scalar with a finite gradient, before and after tasks."""
    fresh = subject.method.build()[0]
    if type(fresh).penalty is Trainer.penalty:
        raise Skipped("no penalty")
    theta_0, theta = subject.worlds.lora.backbone.pretrained, subject.track().models[0].trained
    fresh.begin(theta_0)
    for when in ("before the first task", "after two tasks"):
        trainer = fresh if when == "before the first task" else subject.run().trainer
        for at, where in ((theta_0, "theta_0"), (theta, "theta*_1")):
            leaf = at.map(lambda v: v.detach().clone().requires_grad_())
            value = trainer.penalty(leaf)
            if isinstance(value, Tensor) and value.ndim:
                raise Failed(f"{when}, at {where}: a tensor of shape {tuple(value.shape)}, not a scalar")
            number = float(value.detach() if isinstance(value, Tensor) else value)
            if not np.isfinite(number):
                raise Failed(f"{when}, at {where}: {number}")
            if isinstance(value, Tensor) and value.requires_grad:
                value.backward()
                if leaf.vector.grad is not None and not bool(torch.isfinite(leaf.vector.grad).all()):
                    raise Failed(f"{when}, at {where}: its gradient is not finite")
    return None


def evaluation(subject: Subject) -> str | None:
    """Heads and backbone have the same bits before and after merging."""
    if not subject.run().untouched:
        raise Failed("a head, a buffer, a hook or a mode of the model is not what it was before")
    return None


def _run_in(subject: Subject, world: World) -> str | None:
    left = subject.run(world)
    finite(left.trained, "theta*")
    finite(left.served, "theta_hat")
    return None


def lora(subject: Subject) -> str | None:
    """Two tasks are trained and merged with LoRA (rank-deficient task vectors)."""
    return _run_in(subject, subject.worlds.lora)


def full(subject: Subject) -> str | None:
    """Two tasks are trained and merged with all weights adapted (vectors, convolutions, norms)."""
    world = subject.worlds.full
    if subject.method.trainer.factors not in world.protocol.adapter_section.factors:
        raise Skipped("the trainer keeps a LoRA factor fixed")
    if subject.method.rule is not ServeTrained:
        finite(subject.served(subject.track(world), world), "theta_hat of three tasks")
    return _run_in(subject, world)


def one_task(subject: Subject) -> str | None:
    """A stream of one task runs."""
    return _run_in(subject, subject.worlds.one_task)


def one_class(subject: Subject) -> str | None:
    """A stream of one class a task runs (its loss, gradient and Fisher are zero)."""
    return _run_in(subject, subject.worlds.one_class)
