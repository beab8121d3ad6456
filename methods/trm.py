"""TRM†, Trajectory Regularized Merging (arXiv:2605.08311): **our reconstruction from the abstract, not the authors'**.

The abstract says: merging is an optimisation in an augmented trajectory subspace with three objectives (task alignment,
prediction consistency, gradient responsiveness), needs no stored knowledge, and targets the vanishing gradients at the
start of the next task. Every equation below is ours.

**Basis.** h = theta_hat_{t-1}; K snapshots theta^(1..K) of training at equally spaced steps, theta^(K) = theta*_t. Per
layer l the candidates u_K = theta^(K) - h, u_0 = h - theta_0, u_{K-1}, ..., u_1 (u_k = theta^(k) - h) are made
orthonormal, v_{j,l}, by two passes of modified Gram-Schmidt in float64; one whose residual falls under 1e-4 of its
norm is dropped.

    theta_hat_t(a)_l = h_l + sum_j s_l a_{j,l} v_{j,l},    s_l = ||u_{K,l}||,   a = 1/t on v_K and 0 elsewhere at first

so 0 steps give the running average, and a layer that training left alone keeps h. theta_hat_1 = theta*_1.

**Objective** on batches of the current task, Adam on a: L = L_align + lambda_c L_cons + lambda_g L_grad,

    L_align = cross-entropy of the current head
    L_cons  = tau^2 KL( softmax(z_old(h) / tau) || softmax(z_old(a) / tau) ),  old heads' logits on the same images
    L_grad  = max(0, 1 - ||g(a)|| / (rho g_ref))^2,  g(a) = dL_align/da,  g_ref = mean of ||g(0)|| over 8 batches

All logits are on the scale of the training loss, divided by its temperature; tau comes on top. L_grad asks the merged
point to keep a fraction rho of the responsiveness that h had. Its gradient takes a Hessian-vector product, by central
differences with n = g/||g||: H n ~ [g(a + e n) - g(a - e n)] / 2e, e = 1e-2, only while the hinge is active.
`grad_target=fresh_head` measures g with a freshly drawn head instead of the current one. The last iterate is served;
nothing is selected. No data, past model or statistic is carried to the next task.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from bench.method import Rule, Task, Weights, method, option, rule

if TYPE_CHECKING:
    from torch import Tensor


@rule("trm")
class TRM(Rule):
    """Reconstruction: see the file's docstring for every equation and choice."""

    data, reconstruction = "labelled", True
    K: int = option(4, help="snapshots of the trajectory", ge=1)
    steps: int = option(200, help="Adam steps on the coefficients", ge=0)
    lr: float = option(0.01, help="Adam's learning rate", gt=0)
    batch: int = option(64, help="images a step", ge=1)
    lambda_c: float = option(1.0, help="weight of prediction consistency", ge=0, search=(0.1, 10.0))
    lambda_g: float = option(0.1, help="weight of gradient responsiveness", ge=0, search=(0.01, 1.0))
    rho: float = option(0.25, help="share of h's gradient norm to keep", ge=0)
    tau: float = option(2.0, help="temperature of the consistency term", gt=0)
    grad_target: Literal["current", "fresh_head"] = option("current", help="head with which g is measured")

    @property
    def needs(self) -> tuple[str, ...]:
        """Batches with labels."""
        return ("images",)

    @property
    def record(self) -> tuple[str, ...]:
        """The snapshots that training keeps."""
        return (f"snapshots:{self.K}",)

    def merge(self, task: Task) -> Weights:
        """Optimise the coefficients; the running average at 0 steps."""
        if task.t == 1:
            return task.trained
        from bench.method.tools.minimise import minimise

        basis, s = trajectory_basis(task)  # (J, P) orthonormal within each layer, (J, layers) scales (0: dropped)
        task.log(dropped=float((s == 0).double().mean()), merge_steps=self.steps)
        objective = Objective(self, task, basis, s)
        a = minimise(objective.loss, objective.initial, self.steps, self.lr)
        task.log(**objective.told)
        return objective.at(a)


def trajectory_basis(task: Task) -> tuple[Tensor, Tensor]:
    """Orthonormal directions of every layer side by side (J, P), and their scales s_l (J, layers), 0 where dropped."""
    import torch

    h, snapshots = task.served, [w.to(str(task.served.vector.device)) for w in task.recorded["snapshots"]]
    u = [task.trained - h, h - task.pretrained, *(w - h for w in reversed(snapshots[:-1]))]
    columns: list[list[Tensor]] = []
    kept: list[Tensor] = []
    for candidates in zip(*(c.tensors().values() for c in u), strict=True):  # one layer after another
        found: list[Tensor] = []
        for candidate in candidates:
            v = original = candidate.reshape(-1).double()
            for _ in range(2):
                for w in found:
                    v = v - (w @ v) * w
            residual = v.norm()
            found.append(v / residual if residual > 1e-4 * original.norm() else torch.zeros_like(v))
        columns.append(found)
        kept.append(torch.stack([v.any() for v in found]).double() * candidates[0].double().norm())
    basis = torch.stack([torch.cat([layer[j] for layer in columns]) for j in range(len(u))])
    return basis.to(h.vector), torch.stack(kept, dim=1).to(h.vector)


def assemble(basis: Tensor, c: Tensor, like: Weights) -> Weights:
    """sum_j c_{j,l} v_{j,l} as weights, differentiable in c (J, layers)."""
    return like.map(lambda _: sum(like.spread(c[j]).vector * basis[j] for j in range(len(c))))  # type: ignore[arg-type, return-value]


class Objective:
    """L(a) on the batch of a step, and how often the hinge was active."""

    def __init__(self, rule: TRM, task: Task, basis: Tensor, s: Tensor) -> None:
        self.rule, self.task, self.basis, self.s = rule, task, basis, s
        self.head = "current" if rule.grad_target == "current" else "fresh"
        self.batches: Iterator[Any] = task.batches(rule.batch, rule.steps, labelled=True)
        self.active = 0
        self.told: dict[str, float] = {}
        self.average = task.served + (task.trained - task.served) / task.t
        self.initial = s.new_zeros(s.shape)
        self.initial[0] = 1 / task.t
        zero, steps = s.new_zeros(s.shape), 8 if rule.steps and rule.lambda_g > 0 else 0
        norms = [self.g(zero, x, y).norm() for x, y in task.batches(rule.batch, steps, labelled=True)]
        self.g_ref = float(sum(norms) / max(1, len(norms)))

    def at(self, a: Tensor) -> Weights:
        """theta_hat(a), written around the average so that the initial point is the average to the last bit."""
        return self.average + assemble(self.basis, self.s * (a - self.initial), self.average)

    def g(self, a: Tensor, x: Tensor, y: Any) -> Tensor:
        """dL_align/da, without a graph."""
        import torch
        from torch.nn.functional import cross_entropy

        a = a.detach().requires_grad_()
        return torch.autograd.grad(cross_entropy(self.task.logits(self.at(a), x, self.head), y), a)[0]

    def loss(self, a: Tensor, step: int) -> Tensor:
        """A scalar whose *gradient* is that of L_align + lambda_c L_cons + lambda_g L_grad (its value means nothing:
        where a term's gradient g is known, the term stands there as <g, a>).
        """
        import torch
        from torch.nn.functional import cross_entropy, kl_div, log_softmax

        rule, task = self.rule, self.task
        x, y = next(self.batches)
        with torch.no_grad():
            teacher = log_softmax(task.logits(task.served, x, "old") / rule.tau, -1)
        seen, own = task.logits(self.at(a), x, "seen"), task.columns(task.t)
        old, current = seen[:, : teacher.shape[1]], seen[:, own.start : own.stop]
        align = cross_entropy(current, y)
        g = torch.autograd.grad(align, a, retain_graph=rule.lambda_c > 0)[0]
        total, self.told["align"] = (g * a).sum(), float(align.detach())
        if rule.lambda_c > 0:
            student = log_softmax(old / rule.tau, -1)
            cons = rule.tau**2 * kl_div(student, teacher, log_target=True, reduction="batchmean")
            total, self.told["cons"] = total + rule.lambda_c * cons, float(cons.detach())
        if rule.lambda_g > 0 and rule.rho > 0 and self.g_ref >= 1e-12:
            g = g if self.head == "current" else self.g(a, x, y)
            short = 1 - float(g.norm()) / (rule.rho * self.g_ref)
            if short > 0:
                n, e = g / g.norm().clamp_min(1e-30), 1e-2
                hessian_n = (self.g(a + e * n, x, y) - self.g(a - e * n, x, y)) / (2 * e)
                total = total + rule.lambda_g * (-2 * short / (rule.rho * self.g_ref) * hessian_n * a).sum()
                self.active += 1
        self.told |= {"hinge_active": self.active / (step + 1), "g_ref": self.g_ref}
        return total


PAPER = "arXiv:2605.08311"
ABOUT = "reconstruction from the abstract"
method("trm", "plain+trm@merged", title="TRM", paper=PAPER, status="reconstruction", about=ABOUT)
method(
    "trm_init",
    "plain+trm@merged:steps=0",
    title="TRM init",
    paper=PAPER,
    status="reconstruction",
    about="0 steps: average@merged",
)
method(
    "trm_no_grad",
    "plain+trm@merged:lambda_g=0",
    title="TRM, no gradient term",
    paper=PAPER,
    status="reconstruction",
    about=ABOUT,
)
method(
    "trm_no_cons",
    "plain+trm@merged:lambda_c=0",
    title="TRM, no consistency",
    paper=PAPER,
    status="reconstruction",
    about=ABOUT,
)
