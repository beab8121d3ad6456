"""P&M, Perturb-and-Merge (arXiv:2505.22389).

**Perturb.** Each training step takes its loss at theta, theta + eps Delta or theta - eps Delta with probability 1/3
each, Delta = theta - theta_start: the LoRA product scaled by 1, 1 + eps or 1 - eps. No extra pass. In expectation this
adds (eps^2 / 3) Delta^T H Delta to the loss: curvature along the task vector is paid for.

**Merge.** theta_hat_t = h + alpha_t D with h = theta_hat_{t-1}, D = theta*_t - h, and alpha_t the minimiser along D of
the summed quadratic loss increase Q(x) = 1/2 sum_{i<=t} (x - theta*_i)^T H_i (x - theta*_i), H_i the diagonal empirical
Fisher:

    alpha_t = - sum_{i<=t} (h - theta*_i)^T H_i D / sum_{i<=t} D^T H_i D

kept in O(1) memory by the running sums (centred on theta_0, which matters in float32)

    S <- S + H_t,    m <- m + H_t (theta*_t - theta_0),    alpha_t = <D, m - S (h - theta_0)> / <D, S D>.

What the paper leaves open, and our choice: training starts from theta_hat_{t-1} (its LoRA form implies it); Fisher per
sample, mean over at most 2,048, so a task that is fitted badly weighs more (option `scale=trace` evens that out); alpha
is clamped to [0, 1] (it leaves the interval in about a tenth of random toy problems) and alpha_raw is logged; one draw
of the perturbation a step, shared by all layers, never at evaluation or in the Fisher; heads are neither perturbed nor
merged; D = 0 gives alpha 0; a flat Q with D != 0 gives 1/t. H_i and D live in the space of the dense weights; the paper
may mean LoRA's factors ("low-rank parameter scale"), where a diagonal Fisher is another one and alpha another number.

Published numbers: class-incremental without task id. How its heads are treated is not known to us; the first author's
other public code trains a head a task and concatenates them, as here.
"""

from typing import Literal

import numpy as np

from bench.method import Rule, Task, Trainer, Weights, method, option, rule, state, trainer


@trainer("perturb")
class Perturb(Trainer):
    """The loss at theta_start + {1, 1 + eps, 1 - eps} (theta - theta_start)."""

    eps: float = option(0.5, help="size of the perturbation relative to Delta", ge=0, search=(0.1, 1.0))

    def weights(self, theta: Weights, start: Weights, rng: np.random.Generator) -> Weights:
        """One draw a step; the gradient flows through the scaled difference."""
        sign = rng.integers(-1, 2)
        return theta if sign * self.eps == 0 else start + (theta - start) * (1 + sign * self.eps)


@trainer("gauss")
class Gauss(Trainer):
    """Ablation: a Gaussian direction instead of Delta, of the same norm in every tensor, signs and odds as above."""

    eps: float = option(0.5, help="norm of the noise relative to Delta's, tensor by tensor", ge=0, search=(0.1, 1.0))

    def weights(self, theta: Weights, start: Weights, rng: np.random.Generator) -> Weights:
        """theta +- eps ||Delta_l|| n_l / ||n_l||."""
        sign, noise = rng.integers(-1, 2), theta.normal(rng)
        if sign * self.eps == 0:
            return theta
        scale = (theta - start).norms() / noise.norms()
        return theta + noise * theta.spread(scale) * (sign * self.eps)


@rule("pm_alpha")
class ClosedFormAlpha(Rule):
    """theta_hat_t = h + alpha_t D with the closed-form alpha_t."""

    data = "labelled"
    clamp: bool = option(True, help="keep alpha in [0, 1]")
    per_module: bool = option(False, help="an alpha for each adapted tensor instead of one for all")
    scale: Literal["none", "trace"] = option("none", help="trace: every task's Fisher has trace 1")
    S: Weights = state()
    m: Weights = state()

    @property
    def needs(self) -> tuple[str, ...]:
        """The curvature of the new task."""
        return ("fisher:empirical",)

    def merge(self, task: Task) -> Weights:
        """The exact line search on Q."""
        H, h, D = task.fisher("empirical"), task.served, task.trained - task.served
        task.log(fisher_trace=float(H.sum()))
        if self.scale == "trace" and float(H.sum()) > 0:
            H = H / float(H.sum())
        self.S = self.S + H
        self.m = self.m + H * (task.trained - task.pretrained)
        slope, curvature = D.dots(self.m - self.S * (h - task.pretrained)), D.dots(self.S * D)
        if not self.per_module:
            slope, curvature = slope.sum()[None], curvature.sum()[None]
        moved = D.dots(D) if self.per_module else D.dots(D).sum()[None]
        flat = (curvature <= 0) & (moved > 0)
        raw = (slope / curvature.where(curvature > 0, curvature + 1)).where(~flat, slope * 0 + 1 / task.t)
        alpha = raw.clamp(0, 1) if self.clamp else raw
        task.log(alpha_raw=float(raw.mean()), alpha=float(alpha.mean()), flat=float(flat.any()))
        return h + D * (D.spread(alpha) if self.per_module else float(alpha))


PAPER = "arXiv:2505.22389"
method("pm", "perturb+pm_alpha@merged", title="P&M", paper=PAPER, about="perturbation and closed-form alpha")
method("lora_m", "plain+pm_alpha@merged", title="P&M, no perturbation", paper=PAPER, status="variant")
method("lora_m_gauss", "gauss+pm_alpha@merged", title="P&M, Gaussian", paper=PAPER, status="variant")
method("pm_average", "perturb+average@merged", title="P&M, 1/t", paper=PAPER, status="variant")
method(
    "pm_per_module", "perturb+pm_alpha@merged:per_module=true", title="P&M, per module", paper=PAPER, status="variant"
)
method("pm_oracle", "perturb+oracle_scalar@merged", title="P&M, oracle alpha", paper=PAPER, status="oracle")
