"""``refit``: the trained head trained again on features of the served weights; heads of past tasks stay."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from bench.common.seeds import torch_rng
from bench.data.stream import TaskData
from bench.model.heads import Head, concatenate
from bench.run.classifiers.serving import Features, Fitted


class Refit(Fitted):
    """``refit``: passes of AdamW over fixed features, with the training's batch, head rate and loss; cosine to zero."""

    def fit(
        self, tasks: Sequence[TaskData], trained: Sequence[Head], features: Features, softmax: str = "all"
    ) -> dict[str, float]:
        """Train the tasks' heads again."""
        # With a softmax over each task's own classes the heads have nothing to do with one another.
        groups = [(tasks, trained)]
        if softmax == "own":
            groups = [(own, [head]) for own, head in zip(self.scenario.by_head(tasks), trained, strict=True)]
        for own, heads in groups:
            self._heads += self._trained(own, heads, features)
        return {}

    def _trained(self, tasks: Sequence[TaskData], heads: Sequence[Head], features: Features) -> list[Head]:
        config, epochs = self.protocol.train, self.protocol.head.refit_epochs
        pairs = [features(task) for task in tasks]
        x, y = torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs]) - tasks[0].columns.start
        head = concatenate(heads)  # a copy
        parameters = [p.requires_grad_() for p in head.parameters]
        optimiser = torch.optim.AdamW(parameters, lr=config.head_lr, weight_decay=config.weight_decay, fused=True)
        steps = epochs * math.ceil(len(x) / config.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for epoch in range(epochs):
            rng = torch_rng("refit", self.run_seed, *(task.content for task in tasks), epoch)
            for part in torch.randperm(len(x), generator=rng).to(x.device).split(config.batch):
                logits = head(x[part]) / config.temperature
                optimiser.zero_grad(set_to_none=True)
                cross_entropy(logits, y[part], label_smoothing=config.label_smoothing).backward()
                optimiser.step()
                schedule.step()
        return head.split([len(head.weight) for head in heads])
