"""AdaMerging (Yang et al., "Adaptive Model Merging for Multi-Task Learning", arXiv:2310.02575).

    theta_hat_t = theta_0 + sum_{k<=t} lambda_k tau_k             task-wise,   tau_k = theta*_k - theta_0
    theta_hat_t = theta_0 + sum_{k<=t} lambda_{k,l} tau_{k,l}     layer-wise, in every adapted tensor l

with the lambda, from 0.3 on, that minimise the entropy of the merged model's predictions on unlabelled images, summed
over tasks: 500 steps of Adam, learning rate 1e-3. No label is read.

What a continual learner has to choose, and our choice: the paper tunes on test images of all tasks; here on training
images, a buffer of 64 of each past task, or on the current task's alone (`images=current`). Every image is judged by
its own task's head. One batch of 16 a task and step (the authors' code, EnnengYang/AdaMerging, takes two; FusionBench
one, and 1,000 steps). lambda is clamped to [0, 1] in the forward pass as in the authors' code (FusionBench does not):
one that has left the interval gets no gradient. The entropy is that of log-softmax, as the authors' (FusionBench has
log(p + 1e-8)). A "layer" is one adapted tensor, as in their code. The tuning starts anew after each task, so all tau_k
are carried (T P). With 0 steps this is task arithmetic at 0.3.

Published numbers: CLIP, a zero-shot head a task, task id given (8 tasks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.method import Task, Weights, method, option, rule
from bench.method.tools.entropy import EntropyRule

if TYPE_CHECKING:
    from torch import Tensor


@rule("adamerging")
class AdaMerging(EntropyRule):
    """theta_0 + sum_k lambda_k tau_k with the lambda of least entropy."""

    granularity: Literal["layerwise", "taskwise"] = option("layerwise", help="a lambda for each tensor of each task")
    lam: float = option(0.3, help="initial lambda", ge=0, le=1, search=(0.1, 1.0))
    clamp: bool = option(True, help="keep lambda in [0, 1]")

    def initial(self, task: Task) -> Tensor:
        """lambda (t, tensors) or (t, 1) before the first step."""
        columns = len(task.trained.layout.names) if self.granularity == "layerwise" else 1
        return self.taus.new_full((len(self.taus), columns), self.lam)

    def merge(self, task: Task) -> Weights:
        """Tune lambda."""
        import torch

        self.add(task)
        sizes = task.trained.layout.sizes if self.granularity == "layerwise" else len(task.trained.vector)
        layers = self.taus.split(sizes, dim=1)
        arithmetic = task.pretrained.vector + sum(self.taus) * self.lam

        def theta(lam: Tensor) -> Weights:
            # Written around task arithmetic, so that 0 steps give its very bits.
            change = (lam.clamp(0, 1) if self.clamp else lam) - self.lam
            moved = [c @ tau for c, tau in zip(change.unbind(1), layers, strict=True)]
            return Weights(arithmetic + torch.cat(moved), task.trained.layout)

        lam = self.tune(task, self.initial(task), theta)
        task.log(lam_new=float(lam[-1].mean()))
        if task.t > 1:
            task.log(lam_old=float(lam[:-1].mean()))
        return theta(lam)


PAPER = "arXiv:2310.02575"
method(
    "adamerging", "plain+adamerging@pretrained", title="AdaMerging", paper=PAPER,
    about="layer-wise; tuned on 64 unlabelled training images of each past task",
)  # fmt: skip
method(
    "adamerging_task", "plain+adamerging@pretrained:granularity=taskwise", title="AdaMerging, task-wise", paper=PAPER,
    about="one coefficient a task",
)  # fmt: skip
method(
    "adamerging_current", "plain+adamerging@pretrained:images=current", title="AdaMerging, current images",
    paper=PAPER, status="variant", about="tuned on the current task's images alone",
)  # fmt: skip
