"""AdaRank (Lee et al., "Adaptive Rank Pruning for Enhanced Model Merging", arXiv:2503.22178).

For every adapted matrix l and task k, tau_{k,l} = sum_r s_r u_r v_r^T; a gate on each singular component, and a weight:

    theta_hat_l = theta_l + sum_{k<=t} w_{k,l} sum_r [b_{k,l,r} > 0] s_r u_r v_r^T

b and w minimise the entropy of the merged model's predictions on unlabelled images, summed over tasks. Backwards a gate
is sigma(b / 10): the gradient passes straight through the step. Two modes, after what they begin with:

    ta     theta = theta_0,             tau_k = theta*_k - theta_0
    cart   theta = mean of theta*_k,    tau_k less the mean of the task vectors

An open gate begins at b = 0.1, a closed one at -0.1. Adam, learning rate 1e-3 for w and b, batches of 16 a task. Where
w begins, and the share of gates that begin open, is set for each backbone and number of tasks in the authors' code
(david3684/AdaRank, vision/configs). Our defaults are those of ViT-B/32 and 8 tasks (`w` and `ratio` change them):

    w / ratio    ViT-B/32: 8 tasks   14          20          ViT-L/14: 8   14            20
    ta           0.3 / 1             0.3 / 1     0.05 / 1    0.3 / 1       0.3 / 1       1.0 / 0.3
    cart         2.3 / 0.16          2.8 / 0.32  2.4 / 0.32  3.0 / 0.16    1.25 / 0.16   1.0 / 0.16

What is ours: the images (a buffer of 64 unlabelled training images of each past task, or the current task's alone; the
authors tune on all tasks' test images) and the number of steps, 500 (theirs is 10,000: `adarank_ref`; 100,000 of 2
images for ViT-L/14 with 14 and 20 tasks). The last iterate is served; the authors' code reports the best of the
checkpoints it tries on the test set. Matrices are known by their shape, not by name, so all of them get gates; other
tensors have the weight alone. Singular components that are rounding, as nearly all are under LoRA, are left out, and
the ratio is of the rank that remains (at least one), as it would say nothing otherwise; of full-rank task vectors that
is the authors' count. w is not clamped, as in their configurations. The factors are computed anew at each merge, since
the tuning starts anew and `cart` centres anew: only the tau_k are carried (T P), where keeping factors would take
2 T P.

Published numbers: CLIP, a zero-shot head a task, task id given (8 to 20 tasks); RoBERTa and GPT-2 on GLUE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.method import Task, Weights, method, option, rule
from bench.method.tools.entropy import EntropyRule

if TYPE_CHECKING:
    from torch import Tensor

BEGIN = {"ta": (0.3, 1.0), "cart": (2.3, 0.16)}  #: w, and the share of gates that are on: ViT-B/32, 8 tasks
LOGIT, TEMPERATURE = 0.1, 10.0


@rule("adarank")
class AdaRank(EntropyRule):
    """Gated singular components of the task vectors, with the gates and weights of least entropy."""

    mode: Literal["ta", "cart"] = option("ta", help="task vectors from theta_0, or from the mean of the models")
    w: float | None = option(None, help="initial weight; default: 0.3, cart 2.3", gt=0, search=(0.05, 3.0))
    ratio: float | None = option(
        None, help="share of gates that begin open; default: 1, cart 0.16", gt=0, le=1, search=(0.04, 1.0)
    )

    def merge(self, task: Task) -> Weights:
        """Tune gates and weights."""
        import torch

        self.add(task)
        w, ratio = (given or usual for given, usual in zip((self.w, self.ratio), BEGIN[self.mode], strict=True))
        mean = self.taus.mean(0) * (self.mode == "cart")
        origin = Weights(task.pretrained.vector + mean, task.trained.layout)
        stacks = zip(*(Weights(tau - mean, origin.layout).stacks() for tau in self.taus), strict=True)
        groups = [Group(same[0][0], torch.stack([x for _, x in same]), w, ratio) for same in stacks]
        sizes = [len(group.initial) for group in groups]

        def theta(c: Tensor) -> Weights:
            moved: dict[str, Tensor] = {}
            for group, own in zip(groups, c.split(sizes), strict=True):
                moved |= zip(group.names, group.merged(own), strict=True)
            return origin + origin.with_tensors(moved)

        c = self.tune(task, torch.cat([group.initial for group in groups]), theta)
        on = torch.cat([group.parts(own)[1].flatten() > 0 for group, own in zip(groups, c.split(sizes), strict=True)])
        task.log(gates_on=float(on.double().mean()) if len(on) else 1.0)
        return theta(c)


class Group:
    """All tensors of one shape: ``x`` (t, n, *shape), n of them for each of t tasks."""

    def __init__(self, names: tuple[str, ...], x: Tensor, w: float, ratio: float) -> None:
        import torch

        self.names, self.x = names, x
        self.initial = x.new_full(x.shape[:2], w).flatten()  #: w (t, n), then b (t, n, r), as one vector
        self.gated = x.dim() == 4
        if self.gated:
            U, s, Vh = torch.linalg.svd(x, full_matrices=False)
            rank = (s > s[..., :1] * max(x.shape[2:]) * torch.finfo(x.dtype).eps).sum(-1).clamp_min(1)
            r = int(rank.max())
            self.s = s[..., :r]
            # The tasks' factors side by side: one product then sums over tasks.
            self.U = U[..., :r].permute(1, 2, 0, 3).flatten(2)
            self.Vh = Vh[..., :r, :].transpose(0, 1).flatten(1, 2)
            on = torch.arange(r, device=x.device) < (rank * ratio).long().clamp_min(1)[..., None]
            self.initial = torch.cat([self.initial, (on.to(x) * 2 - 1).flatten() * LOGIT])

    def parts(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """w (t, n) and b (t, n, r)."""
        t, n = self.x.shape[:2]
        return c[: t * n].view(t, n), c[t * n :].view(t, n, -1)

    def merged(self, c: Tensor) -> Tensor:
        """Sums over tasks (n, *shape), differentiable in c."""
        import torch

        w, b = self.parts(c)
        if not self.gated:
            return torch.einsum("tn,tn...->n...", w, self.x)
        soft = torch.sigmoid(b / TEMPERATURE)
        gate = (b > 0).to(soft) + (soft - soft.detach())
        return (self.U * (w[..., None] * self.s * gate).transpose(0, 1).flatten(1)[:, None]) @ self.Vh


PAPER = "arXiv:2503.22178"
method("adarank", "plain+adarank@pretrained", title="AdaRank", paper=PAPER, about="on task vectors from theta_0")
method(
    "adarank_cart", "plain+adarank@pretrained:mode=cart", title="AdaRank, CART", paper=PAPER,
    about="on task vectors from the mean of the models",
)  # fmt: skip
method(
    "adarank_ref", "plain+adarank@pretrained:steps=10000", title="AdaRank, 10,000 steps", paper=PAPER,
    status="variant", about="the steps of the authors' code",
)  # fmt: skip
