"""CoMA and CoFiMA (Marouf et al., "Weighted Ensemble Models Are Strong Continual Learners", arXiv:2312.08977).

Training of task t begins at theta_hat_{t-1}; theta_hat_1 = theta*_1, and then

    CoMA      theta_hat_t = (1 - alpha) theta_hat_{t-1} + alpha theta*_t
    CoFiMA    theta_hat_t = [(1 - alpha) F_{t-1} theta_hat_{t-1} + alpha F_t theta*_t]
                            / [(1 - alpha) F_{t-1} + alpha F_t]

entry by entry, with F_i the diagonal Fisher at theta*_i, as trained: those of the last two tasks, nothing is summed.
CoFiMA carries F_{t-1} (P). alpha = 0.4 (the authors' CIFAR-100; 0.5 on CUB and Cars).

What the paper leaves open, and our choice: Fisher is `empirical`, per sample; where both are 0 CoMA's blend is served
(the authors' code, IemProg/CoFiMA, divides 0 by 0). Theirs is the squared gradient of batch means, cut off at 1e-4
(`estimator=cofima`). That code also returns a new head multiplied by its Fisher; our heads are never merged. The
authors then retrain the head on Gaussians of the classes: their published numbers include that, ours do not.

Published numbers: class-incremental, one head over all classes seen, realigned after each task, no task id.
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
    estimator: Literal["empirical", "cofima"] = option("empirical", help="Fisher per sample, or as the authors' code")
    F: Weights = state()

    @property
    def needs(self) -> tuple[str, ...]:
        """The Fisher of the estimator."""
        return ("fisher:empirical" if self.estimator == "empirical" else "fisher:batchmean",)

    def merge(self, task: Task) -> Weights:
        """Blend, then keep the new model's Fisher."""
        if self.estimator == "empirical":
            F = task.fisher("empirical")
        else:
            F = task.fisher("batchmean").map(lambda v: v.clamp(max=1e-4))
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
    "plain+cofima@merged:estimator=cofima",
    title="CoFiMA (authors' Fisher)",
    paper=PAPER,
    status="variant",
    about=ABOUT,
)
