"""BECAME (arXiv:2504.02666) without its gradient projection.

The paper trains task t twice: first with gradients projected away from past inputs, to theta_GP, then without
constraint from there, to theta^; and goes from the one towards the other,

    theta_hat_t = theta_GP + lam D,    D = theta^ - theta_GP,    lam = <F_t, D^2> / <F_t + F_old, D^2>
    F_old <- gamma F_old + F(theta_hat_t),    gamma = 1

with F_t the diagonal Fisher of task t at theta^ and F(theta_hat_t) that at the merged weights. Carries F_old (P).

Shipped is the second stage from theta_GP = theta_hat_{t-1}: `became_noproj`, never BECAME. theta_hat_1 = theta*_1. At
t = 2 this is P&M's coefficient (arXiv:2505.22389) with the same Fishers; later that one keeps where each Fisher was
taken. What the paper leaves open, and our choice: Fisher is `empirical`, per sample, of the current head's loss; D = 0
gives lam 0; without any Fisher along D lam is 1/t.

`became_ref` has the Fisher that the authors' code takes by default, `kind=argmax_batch`: predicted labels, the squared
gradient of a batch's mean loss times its size, over the number of images. Of the official repository we saw a README
alone; a public fork has its history and code (ankur-bohra/BECAME: GPM-based/fisher.py, train_util.py), and coefficient,
gamma and the update of F_old there are the above. It interpolates heads too, with one lam for all parameters; our heads
are never merged, and have no say in lam. It takes Fishers in training mode, which matters to batch normalisation alone.

Published numbers: convolutional networks trained from scratch, a head a task, the task given.
"""

from typing import Literal

from bench.method import Rule, Task, Weights, method, option, rule, state
from bench.method.tools.fisher_kinds import data_of


@rule("became")
class Became(Rule):
    """theta_hat_{t-1} + lam D, with lam the new task's share of the curvature along D."""

    data = "labelled"
    gamma: float = option(1.0, help="decay of the old tasks' Fisher", ge=0, le=1, search=[0.5, 0.7, 0.9, 1.0])
    kind: Literal["empirical", "argmax_batch"] = option("empirical", help="estimator of the Fisher")
    F_old: Weights = state()

    @property
    def needs(self) -> tuple[str, ...]:
        """The Fisher at theta*_t, and at the merged weights."""
        return (f"fisher:{self.kind}", f"fisher:{self.kind}@elsewhere")

    @property
    def reads(self) -> Literal["none", "unlabelled", "labelled", "oracle"]:
        """Labels where the kind does."""
        return data_of(self.kind)

    def merge(self, task: Task) -> Weights:
        """Move along D, then add the Fisher of where that led to."""
        if task.t == 1:
            self.F_old = task.fisher(self.kind)
            return task.trained
        D, F = task.trained - task.served, task.fisher(self.kind)
        new, old = D.dot(F * D), D.dot(self.F_old * D)
        lam = new / (new + old) if new + old > 0 else 1 / task.t if D.norm() > 0 else 0.0
        task.log(lam=lam)
        merged = task.served + D * lam
        self.F_old = self.F_old * self.gamma + task.fisher(self.kind, at=merged)
        return merged


PAPER = "arXiv:2504.02666"
ABOUT = "second training stage and merge alone"
method(
    "became_noproj", "plain+became@merged", title="BECAME, no projection", paper=PAPER, status="variant", about=ABOUT
)
method(
    "became_ref",
    "plain+became@merged:kind=argmax_batch",
    title="BECAME, no projection (authors' Fisher)",
    paper=PAPER,
    status="variant",
    about=ABOUT,
)
