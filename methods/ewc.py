"""Elastic Weight Consolidation (Kirkpatrick et al., arXiv:1612.00796); online form from Progress & Compress
(Schwarz et al., arXiv:1805.06370).

The task loss gets a penalty that is quadratic around what was learnt before, with diagonal Fisher F_i at theta*_i:

    separate:  lam/2 * sum_{i<t} F_i (theta - theta*_i)^2
    online:    lam/2 * F (theta - theta*_{t-1})^2,    F <- gamma F + F_t

The separate form is kept as running sums, exactly (d = theta - theta_0; centred, for float32):

    S = sum F_i,  m = sum F_i (theta*_i - theta_0),  c = sum F_i (theta*_i - theta_0)^2
    sum F_i (theta - theta*_i)^2 = S d^2 - 2 m d + c

so it carries 2P numbers however many tasks there were. Open choices: the factor 1/2 is in the penalty, as in the code
of MagMax and CMM (Mammoth and Avalanche omit it: their lambda L is our 2L); Fisher is `empirical`, a mean over samples,
of the current head's loss, and not decayed (MagMax's and CMM's: F <- 0.5 F + 0.5 F_t). `kind=exact` takes the model's
own distribution instead of the labels, which van de Ven (arXiv:2502.11756) found better and less sensitive to lam.
Heads of past tasks are frozen and not penalised; under LoRA the penalty is on the dense weight. lam has no universal
default: it belongs to the Fisher's kind and the protocol, which names a value tuned on validation data (`empirical`).

Published numbers: permuted MNIST, one head for all tasks; Atari games, the task inferred.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.method import Task, Trainer, Weights, method, option, state, trainer

if TYPE_CHECKING:
    from torch import Tensor


@trainer("ewc")
class EWC(Trainer):
    """Plain training plus the quadratic penalty."""

    lam: float = option(help="strength of the penalty, tied to the Fisher's kind", ge=0, search=(1.0, 1e4))
    form: Literal["separate", "online"] = option("separate", help="running sums of all tasks, or a decayed one")
    kind: Literal["empirical", "exact"] = option("empirical", help="estimator of the Fisher")
    gamma: float = option(1.0, help="decay of the online Fisher", gt=0, le=1)
    S: Weights = state()
    m: Weights = state()
    c: float = state(0.0)

    @property
    def needs(self) -> tuple[str, ...]:
        """The curvature of the task just learnt."""
        return (f"fisher:{self.kind}",)

    def penalty(self, theta: Weights) -> Tensor:
        """lam/2 * (S d^2 - 2 m d + c)."""
        d = theta - self.pretrained
        return self.lam / 2 * ((self.S * d * d - self.m * d * 2).sum() + self.c)

    def learnt(self, task: Task) -> None:
        """Add task t's Fisher to the sums."""
        F, d = task.fisher(self.kind), task.trained - task.pretrained
        if self.form == "online":
            self.S = self.S * self.gamma + F
            self.m, self.c = self.S * d, (self.S * d).dot(d)
        else:
            self.S, self.m, self.c = self.S + F, self.m + F * d, self.c + (F * d).dot(d)


method("ewc", "ewc+last@previous", title="EWC", paper="arXiv:1612.00796", status="baseline", about="lambda tuned")
method("ewc_online", "ewc+last@previous:form=online", title="EWC online", paper="arXiv:1805.06370", status="variant")
