"""THE training loop: one task, any trainer, any adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.common.seeds import derive, numpy_rng, torch_rng
from bench.config.schema import ProtocolConfig, TrainConfig
from bench.data.stream import Stream, TaskData
from bench.method import Trainer
from bench.method.step import StepHeads
from bench.method.weights import Weights
from bench.model.adapters.frozen import Frozen
from bench.model.backbone import Backbone
from bench.model.heads import Head, concatenate, training_heads
from bench.run.live_step import LiveStep

GRAD_SQ_BETA = 0.999  #: decay of the recorded squared gradient: Adam's beta_2
ONSET = (0, 10, 50)  #: optimiser steps before which loss and gradient norm are recorded


@dataclass
class Learnt:
    """What training a task leaves behind."""

    weights: Weights  #: theta*_t
    heads: list[Head]  #: of the tasks trained on
    steps: int
    seconds: float
    onset: dict[str, dict[str, float]]  #: {"loss" | "grad_norm": {"0": .., "10": .., "50": ..}}
    recorded: dict[str, list[Weights]] = field(default_factory=dict)  #: by-products on the CPU, oldest first


def train(
    backbone: Backbone,
    stream: Stream,
    tasks: Sequence[TaskData],
    trainer: Trainer,
    start: Weights,
    protocol: ProtocolConfig,
    run_seed: int,
    record: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda step, total: None,
    earlier: Sequence[Head] = (),
    served: Weights | None = None,
    directions: Mapping[str, Tensor] | None = None,
) -> Learnt:
    """Train the adapter and the heads of ``tasks`` (the current one; all seen for a joint reference) from ``start``.

    ``record`` asks for by-products: ``snapshots:K``, copies of theta at equal distances; ``grad_sq``, the
    exponential average of the squared gradient of the task loss in the dense weights, bias-corrected as in Adam.
    ``progress`` is told (steps done, of how many) after each step. ``earlier`` are the heads of the tasks before, which
    a head that all tasks share goes on from, and a trainer with ``heads = "seen"`` trains on. ``served`` is
    theta_hat_{t-1}, for trainers that read it; ``directions`` are rows of LoRA's A that a trainer has chosen.

    Raises:
        FloatingPointError: training diverged.
        ValueError: label smoothing with a softmax over the own task, which would smooth towards masked classes.
    """
    began = time.perf_counter()
    config, device, content = protocol.train, backbone.device, "+".join(task.content for task in tasks)
    # A fixed A is one draw for the whole run, a trained one is drawn anew for each task.
    draw = derive(protocol.adapter, run_seed, *([content] if "A" in trainer.factors else []))
    adapter = backbone.adapter(start, trainer.factors, draw) if trainer.adapts(tasks[-1].t) else Frozen(start)
    if directions:
        adapter.hold(directions)
    scenario = stream.scenario
    headed = [group[0] for group in scenario.by_head(tasks)]  # a head has the columns of its first task
    head = training_heads(protocol.head, headed, backbone.dim, device, run_seed, scenario, earlier)
    heads: dict[StepHeads, Sequence[Head]] = {
        "old": scenario.open_heads(earlier), "seen": scenario.open_heads([*earlier, head]),
    }  # fmt: skip
    if trainer.heads == "seen":  # one head to train, from the old ones as they are and the fresh one
        headed = [group[0] for group in scenario.by_head(stream.tasks[: tasks[-1].t])]
        head = concatenate(heads["seen"])
        heads["seen"] = [head]
    sizes = [len(task.columns) for task in headed]
    trained = [([p.requires_grad_() for p in head.parameters], config.head_lr), (adapter.parameters, config.lr)]
    groups = [{"params": parameters, "lr": lr} for parameters, lr in trained if parameters]
    if not groups:  # text rows on a frozen backbone
        return Learnt(start, head.split(sizes), 0, time.perf_counter() - began, {"loss": {}, "grad_norm": {}})
    optimiser = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    index = torch.cat([task.train for task in tasks])
    labels = stream.train_columns - headed[0].columns.start
    if trainer.softmax == "own" and config.label_smoothing:
        raise ValueError("train.label_smoothing and a trainer with softmax='own' do not combine")
    foreign = _other_heads_columns(headed, device) if trainer.softmax == "own" else None
    total = config.epochs * config.passes * math.ceil(len(index) / config.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(config, step, total))
    low = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
    kind = device.split(":")[0]
    scaler = torch.amp.GradScaler(kind, enabled=low is torch.float16)
    snapshot_at = _snapshot_steps(record, total)
    rng = numpy_rng("trainer", run_seed, content)
    onset: dict[str, dict[str, float]] = {"loss": {}, "grad_norm": {}}
    snapshots: list[Weights] = []
    grad_sq = start.zeros() if "grad_sq" in record else None
    climbs = bool(adapter.parameters) and type(trainer).ascent is not Trainer.ascent

    def forward(at: Weights, pixels: Tensor) -> Tensor:
        with torch.autocast(kind, low, enabled=low is not None):
            return backbone.forward(at, pixels)

    def task_loss_at(at: Weights, pixels: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The cross-entropy of a batch, and its features (b, D)."""
        features = forward(at, pixels)
        logits = head(features) / config.temperature
        if foreign is not None:
            logits = logits.masked_fill(foreign[y], -math.inf)
        return cross_entropy(logits, y, label_smoothing=config.label_smoothing), features

    for step, batch in enumerate(_batches(index, config, run_seed, content)):
        pixels, y = backbone.transform.augmented(stream.train_images[batch], run_seed, content, step), labels[batch]
        theta = adapter.weights()
        point = trainer.weights(theta, start, rng)
        if climbs:
            here = point.map(lambda v: v.detach().requires_grad_())
            [ascent] = torch.autograd.grad(scaler.scale(task_loss_at(here, pixels, y)[0]), here.vector)
            point = trainer.ascent(point, Weights(ascent / scaler.get_scale(), point.layout))
        watched = bool(adapter.parameters) and (step in ONSET or grad_sq is not None)
        if watched:
            # A node of its own: its gradient is the loss's, not the penalty's.
            point = point.map(lambda v: v.view_as(v))
            point.vector.retain_grad()
        task_loss, features = task_loss_at(point, pixels, y)
        live = LiveStep(
            t=tasks[-1].t, weights=point, pixels=pixels, columns=stream.train_columns[batch], rng=rng,
            features=features, forward=forward, heads=heads, temperature=config.temperature,
            transform=backbone.transform, seed=(run_seed, content, step),
            taught_by=served if trainer.reads_served else None,
        )  # fmt: skip
        loss = task_loss + trainer.penalty(theta) + trainer.loss(live)
        optimiser.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        if step in ONSET:
            onset["loss"][str(step)] = float(task_loss.detach())
        if watched:
            gradient: Tensor = point.vector.grad / scaler.get_scale()  # type: ignore[assignment, operator]
            if step in ONSET:
                onset["grad_norm"][str(step)] = float(gradient.norm())
            if grad_sq is not None:
                # Where fp16 overflows the step is skipped, and so is its gradient.
                grad_sq.vector.lerp_(gradient.square().nan_to_num(0, 0, 0), 1 - GRAD_SQ_BETA)
        if config.clip is not None:
            scaler.unscale_(optimiser)
            torch.nn.utils.clip_grad_norm_(
                [p for group in optimiser.param_groups for p in group["params"]], config.clip
            )
        scaler.step(optimiser)
        scaler.update()
        schedule.step()
        if step + 1 in snapshot_at:
            snapshots.append(adapter.weights().detach().to("cpu"))
        progress(step + 1, total)

    weights = adapter.weights().detach()
    if not bool(torch.isfinite(weights.vector).all() & torch.isfinite(head.weight).all()):
        raise FloatingPointError(f"training of task {tasks[-1].t} diverged; lower train.lr or train.head_lr")
    recorded = {"snapshots": snapshots} if snapshot_at else {}
    if grad_sq is not None:
        recorded["grad_sq"] = [(grad_sq / (1 - GRAD_SQ_BETA**total)).to("cpu")]
    return Learnt(weights, head.split(sizes), total, time.perf_counter() - began, onset, recorded)


def _batches(index: Tensor, config: TrainConfig, run_seed: int, content: str) -> Iterator[Tensor]:
    """Image indices (b,): each epoch a permutation, a function of run, task and epoch; the last, short batch counts."""
    for epoch in range(config.epochs * config.passes):
        order = torch.randperm(len(index), generator=torch_rng("batches", run_seed, content, epoch))
        yield from index[order.to(index.device)].split(config.batch)


def _rate(config: TrainConfig, step: int, total: int) -> float:
    """Factor on the learning rate before this step: linear warm-up, then constant, in steps, or cosine to zero."""
    warmup = total // 10 if config.warmup_steps == "auto" else config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "multistep":
        epoch = step * config.epochs // total
        return config.gamma ** sum(milestone <= epoch for milestone in config.milestones)
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _snapshot_steps(record: Sequence[str], total: int) -> set[int]:
    """Steps after which to keep a copy: "snapshots:K" means round(k N / K) for k = 1..K."""
    steps: set[int] = set()
    for wish in record:
        kind, _, count = wish.partition(":")
        if kind not in ("snapshots", "grad_sq"):
            raise ValueError(f"unknown by-product {wish!r}; known: snapshots:K, grad_sq")
        if kind == "snapshots":
            steps |= {max(1, round(k * total / int(count))) for k in range(1, int(count) + 1)}
    return steps


def _other_heads_columns(tasks: Sequence[TaskData], device: str) -> Tensor:
    """(classes, classes) bool: for a sample of class y, which columns belong to the head of another task than y's."""
    owner = torch.cat([torch.full((len(task.columns),), task.t) for task in tasks])
    return (owner[:, None] != owner[None, :]).to(device)
