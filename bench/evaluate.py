"""Predictions of a served model and the integer counts made from them; no metric is computed here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.backbone import Backbone
from bench.heads import Head, concatenate
from bench.stream import Stream, TaskData
from bench.weights import Weights


@torch.inference_mode()
def predict(
    backbone: Backbone, weights: Weights, heads: Sequence[Head], stream: Stream, tasks: Sequence[TaskData], batch: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Predicted columns of every test image of ``tasks``, in one pass.

    Args:
        backbone: gives the forward pass.
        weights: the served weights.
        heads: of all tasks seen so far, in order; ``heads[i]`` belongs to ``stream.tasks[i]``.
        stream: gives the images.
        tasks: whose test images are predicted.
        batch: images a forward pass.

    Returns:
        Per task, int64 (m,) on the CPU: argmax over all classes seen, and argmax within the true task. Logits are
        float32; ties go to the lowest column.
    """
    head = concatenate(heads)
    lengths = [len(task.test) for task in tasks]
    index = torch.cat([task.test for task in tasks])
    logits = torch.cat([head(backbone.features(weights, stream.test_images[part])) for part in index.split(batch)])
    everywhere, within = [], []
    for task, mine in zip(tasks, logits.split(lengths), strict=True):
        everywhere.append(mine.argmax(1).cpu())
        own = mine[:, task.columns.start : task.columns.stop]
        within.append((own.argmax(1) + task.columns.start).cpu())
    return everywhere, within


def count(predicted: Tensor, stream: Stream, task: TaskData) -> tuple[int, int]:
    """(correct, total) of the predictions for one task's test images."""
    truth = stream.test_columns[task.test].cpu()
    return int((predicted == truth).sum()), len(truth)
