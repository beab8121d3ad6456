"""Learning without Forgetting, LwF (arXiv:1606.09282).

While task t is learnt, the old heads must go on saying of the new task's images what they said before it:

    L = L_CE + alpha T^2 KL( softmax(z_old(x; theta_hat_{t-1}) / T) || softmax(z_old(x; theta) / T) )

with z_old the logits of all earlier heads as one softmax, on the batch that the cross-entropy is taken on, in the same
training views, and on the same scale (divided by the training temperature). The teacher is what was served after task
t-1; with the rule `last` that is theta*_{t-1}, as published, and with a merging rule the merged model teaches. Nothing
but the served model is carried.

Open choices: alpha 0.5 and T 2 are those of Mammoth (models/lwf.py), whose term is the cross-entropy of the softened
distributions without T^2, between logits of the unaugmented image before and the augmented one now; the T^2 keeps the
gradient's size when T changes. **Old heads are frozen here** as in every other method (the paper trains them too), the
cross-entropy is over the new head's classes, and the new head is not warmed up alone.

Published numbers: a head a task with the task id given (the paper); Mammoth also reports one softmax over all classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Step, Trainer, method, option, trainer

if TYPE_CHECKING:
    from torch import Tensor


@trainer("lwf")
class LwF(Trainer):
    """Plain training plus the distillation of the old heads."""

    reads_served = True
    alpha: float = option(0.5, help="weight of the distillation", ge=0, search=(0.05, 5.0))
    T: float = option(2.0, help="temperature that softens both sides", gt=0)

    def loss(self, step: Step) -> Tensor | float:
        """alpha T^2 KL(teacher || student), mean over the batch."""
        if step.t == 1:
            return 0.0
        import torch
        from torch.nn.functional import kl_div

        with torch.no_grad():
            teacher = (step.logits(step.served, step.pixels, "old") / self.T).log_softmax(-1)
        student = (step.logits(step.weights, step.pixels, "old") / self.T).log_softmax(-1)
        return self.alpha * self.T**2 * kl_div(student, teacher, log_target=True, reduction="batchmean")


PAPER = "arXiv:1606.09282"
method("lwf", "lwf+last@previous", title="LwF, old heads frozen", paper=PAPER, status="variant", about="distillation")
method(
    "lwf_average", "lwf+average@merged", title="LwF, 1/t", paper=PAPER, status="variant",
    about="the merged model teaches",
)  # fmt: skip
