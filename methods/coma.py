"""CoMA and CoFiMA (Marouf et al., "Weighted Ensemble Models Are Strong Continual Learners", arXiv:2312.08977).

Training of task t begins at theta_hat_{t-1}; theta_hat_1 = theta*_1, and then

    CoMA      theta_hat_t = (1 - alpha) theta_hat_{t-1} + alpha theta*_t
    CoFiMA    theta_hat_t = [(1 - alpha) F_{t-1} theta_hat_{t-1} + alpha F_t theta*_t]
                            / [(1 - alpha) F_{t-1} + alpha F_t]

entry by entry, with F_i the diagonal Fisher at theta*_i, as trained: those of the last two tasks, nothing is summed.
CoFiMA carries F_{t-1} (P). alpha = 0.4 stands in the authors' settings for CIFAR-100, but what ran is 0.5: the command
line overwrites the file (IemProg/CoFiMA, main.py), and both logs that they publish print 0.5.

What the paper leaves open, and our choice: Fisher is `empirical`, per sample; where both are 0 CoMA's blend is served
(the authors' code divides 0 by 0). `cofima_ref` has what ran: alpha 0.5, and the Fisher min(F, 1e-4) with F the mean,
over all batches of the training set in training views, of the squared gradient of the batch's cross-entropy over the
logits of all classes seen (`estimator=batchmean_seen`; training itself took the new classes' logits alone). Not theirs:
the batch (128; ours is the training's), training mode (matters to dropout and batch normalisation alone). Their code
also returns a new head multiplied by its Fisher and blends heads; our heads are never merged.

Published numbers: class-incremental, one head over all classes seen, realigned after each task on Gaussians of the
classes' features, no task id. Ours are without that realignment.
"""

from typing import Literal

from bench.method import Rule, Task, Weights, method, option, rule, state


@rule("coma")
class CoMA(Rule):
    """Blend with a fixed weight on the new model."""

    alpha: float = option(0.4, help="weight of the new model", ge=0, le=1, search=(0.1, 0.9))

    def merge(self, task: Task) -> Weights:
        """One step of the moving average."""
        return task.trained if task.t == 1 else task.served + (task.trained - task.served) * self.alpha


@rule("cofima")
class CoFiMA(Rule):
    """Blend with a fixed weight and the Fishers of the last two tasks."""

    data = "labelled"
    alpha: float = option(0.4, help="weight of the new model", ge=0, le=1, search=(0.1, 0.9))
    estimator: Literal["empirical", "batchmean_seen"] = option(
        "empirical", help="Fisher per sample, or as the authors ran it, min(., 1e-4)"
    )
    F: Weights = state()

    @property
    def needs(self) -> tuple[str, ...]:
        """The Fisher of the estimator."""
        return (f"fisher:{self.estimator}",)

    def merge(self, task: Task) -> Weights:
        """Blend, then keep the new model's Fisher."""
        F = task.fisher(self.estimator)
        if self.estimator != "empirical":
            F = F.map(lambda v: v.clamp(max=1e-4))
        old, new = self.F.vector * (1 - self.alpha), F.vector * self.alpha
        self.F = F
        if task.t == 1:
            return task.trained
        share = (new / (old + new)).where(old + new > 0, self.alpha)
        return task.served + (task.trained - task.served) * share


PAPER = "arXiv:2312.08977"
ABOUT = "without the authors' retraining of heads"
method("coma", "plain+coma@merged", title="CoMA", paper=PAPER, about=ABOUT)
method("cofima", "plain+cofima@merged", title="CoFiMA", paper=PAPER, about=ABOUT)
method(
    "cofima_ref",
    "plain+cofima@merged:alpha=0.5,estimator=batchmean_seen",
    title="CoFiMA (as the authors ran it)",
    paper=PAPER,
    status="variant",
    about=ABOUT,
)
