"""Model Stock, All We Need Is Just a Few Fine-Tuned Models (Jang et al., arXiv:2403.19522).

Fine-tuned weights lie on a shell around a centre. The point nearest to it on the plane of theta_0 and k models whose
changes are at one angle theta to each other is, for every tensor,

    theta_hat = r mean_i theta*_i + (1 - r) theta_0,    r = k cos(theta) / ((k - 1) cos(theta) + 1)

On a stream k = t, and theta_hat_1 = theta*_1. cos(theta) is the mean over pairs of tasks (the paper has one angle; so
mergekit reads it for more than two models; FusionBench averages angles), whose sum grows by <u_t, u_1 + ... + u_{t-1}>
with u_i the normalised changes: carried are those sums and the sum of changes (2 P).

What the paper leaves open, and our choice: a layer is an adapted tensor, biases too; a mean cosine under 0 counts as 0,
so that the tensor returns to theta_0 (mergekit goes beyond it, to a pole at -1 / (k - 1)); a tensor that a task did not
change is at right angles to all. The paper's periodic merging during training is not here.

Published numbers: several fine-tunings of CLIP on **one** task (ImageNet) with its one head, for which the shell is
derived. That tasks differ is our use, as it is mergekit's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Rule, Task, Weights, method, rule, state

if TYPE_CHECKING:
    from torch import Tensor


@rule("model_stock")
class ModelStock(Rule):
    """The mean drawn to theta_0 by the angle between tasks, tensor by tensor."""

    order_invariant = True
    total: Weights = state()  #: sum of changes
    directions: Weights = state()  #: sum of changes normalised in every tensor
    cosines: Tensor | float = state(0.0)  #: by tensor, sum over pairs of tasks

    def merge(self, task: Task) -> Weights:
        """Update the sums and the angle."""
        import torch

        tau, t = task.trained - task.pretrained, task.t
        norms = tau.norms()
        u = tau / tau.spread(norms.where(norms > 0, 1)).vector
        self.cosines = self.directions.dots(u) + self.cosines
        self.total, self.directions = self.total + tau, self.directions + u
        if t == 1:
            return task.trained
        cos = (self.cosines / (t * (t - 1) / 2)).clamp(0, 1)
        ratio = t * cos / ((t - 1) * cos + 1)
        task.log(angle=float(torch.acos(cos).mean().rad2deg()), ratio=float(ratio.mean()))
        return task.pretrained + self.total / t * tau.spread(ratio).vector


method(
    "model_stock",
    "plain+model_stock@pretrained",
    title="Model Stock",
    paper="arXiv:2403.19522",
    about="the average, drawn to theta_0 by the angle between tasks",
)
