"""WUDI-Merging, Whoever Started the Interference Should End It (arXiv:2503.08099).

A linear layer's task vector spans about what its inputs span, so for each matrix the merged task vector should differ
little from tau_i where tau_i itself lies:

    theta_hat = theta_0 + argmin_tau sum_{i<=t} ||(tau - tau_i) tau_i^T||_F^2 / ||tau_i||_F^2

by 300 Adam steps of 1e-5 from tau = sum_i tau_i. Expanded, the tau_i appear in running sums alone,

    gradient = 2 (tau G - N),   G = sum_i G_i,   N = sum_i tau_i G_i,   G_i = tau_i^T tau_i / ||tau_i||^2

so these are carried (d_in^2 + d_in d_out numbers a matrix, float64) and sum_i tau_i (P): no task vector is kept, and
what is served after task t is the paper's merge of t tasks. G has a small rank under LoRA, and is multiplied by its
factors there. No data. Tensors that are not matrices: the mean of the tau_i (as FusionBench has it; the authors'
code, nathanielyvo/WUDI-Merging, merges attention and MLP matrices only). FusionBench's settings have 400 steps. A task
that left a layer alone has no part in it (there: a division by zero).

Published numbers: CLIP, a zero-shot head a task, task id given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state
from bench.method.tools.core import thin_svd
from bench.method.tools.spectral import accumulate

if TYPE_CHECKING:
    from torch import Tensor


@rule("wudi")
class WUDI(TaskVectorRule):
    """The merged task vector that interferes least with each task vector on its own inputs."""

    order_invariant = True
    steps: int = option(300, help="Adam steps on the merged task vector", ge=0)
    lr: float = option(1e-5, help="Adam's learning rate", gt=0, search=(1e-6, 1e-3))
    total: Weights = state()
    G: dict[str, Tensor] = state(dict)  #: of a matrix (d_in, d_in); of another tensor the number of tasks
    N: dict[str, Tensor] = state(dict)
    constant: float = state(0.0)  #: what the objective has beside tau

    def merge(self, task: Task) -> Weights:
        """Add tau_t to the sums, minimise from the sum of task vectors."""
        tau = self.tau(task)
        moments = {name: own_inputs(x) for name, x in tau.items()}
        self.G, self.N = accumulate(self.G, self.N, moments, tau)
        self.total = self.total + tau
        matrices = [(x.double(), moments[name]) for name, x in tau.items() if x.dim() == 2]
        self.constant += sum(float(x.square().sum() * g.square().sum()) for x, g in matrices)
        merged, losses = dict[str, "Tensor"](), [self.constant, self.constant]
        for name, start in self.total.items():
            G, N = self.G[name], self.N[name]
            merged[name] = start + self.change(start, G, N) if start.dim() == 2 else N / G
            for i, x in enumerate((start, merged[name])):
                losses[i] += float((x.double() * (x.double() @ G - 2 * N)).sum()) if x.dim() == 2 else 0.0
        task.log(loss_before=losses[0], loss_after=losses[1])
        return task.pretrained + self.total.with_tensors(merged)

    def change(self, start: Tensor, G: Tensor, N: Tensor) -> Tensor:
        """What Adam adds to ``start`` (d_out, d_in), in its dtype."""
        import torch

        from bench.method.tools.minimise import minimise

        at_start = (start.double() @ G - N).to(start)
        V, s, _ = thin_svd(G, rtol=1e-12)
        factor = (V * s.sqrt()).to(start)
        low_rank, whole = 2 * len(s) < len(G), G.to(start)

        def gradient(change: Tensor) -> Tensor:
            return 2 * (at_start + (change @ factor @ factor.mT if low_rank else change @ whole))

        def loss(change: Tensor, step: int) -> Tensor:
            return (change * gradient(change.detach())).sum()  # not the objective, but its gradient

        return minimise(loss, torch.zeros_like(start), self.steps, self.lr)


def own_inputs(x: Tensor) -> Tensor:
    """G_i of a matrix (d_out, d_in); 1 for another tensor, so that the sums are a count and a sum."""
    import torch

    if x.dim() != 2:
        return torch.ones((), dtype=torch.float64, device=x.device)
    x = x.double()
    norm = x.square().sum()
    return x.mT @ x / norm.where(norm > 0, 1)


method("wudi", "plain+wudi@pretrained", title="WUDI-Merging", paper="arXiv:2503.08099", about="least interference")
