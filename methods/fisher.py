"""Fisher merging (Matena & Raffel, "Merging Models with Fisher-Weighted Averaging", arXiv:2111.09832).

Entry by entry, with F_i the diagonal Fisher at theta*_i under the model's own distribution (`kind=exact`; no labels),

    theta_hat_t = sum_{i<=t} c_i F_i theta*_i / sum_{i<=t} c_i F_i,    F_i = mean_x sum_c p_c (d log p_c)^2

and, as the authors' code has it (mmatena/model_merging), c_i = 1 / ||F_i||_2 over all entries (`normalize=l2`), and the
Fisher of one model, the *target*, replaced by max(F, 1e-6) above and below (not in its norm): so an entry that no task
knows anything of goes to the target. Carried as two sums (2P), centred on theta_0 for float32:

    S <- S + c_t F_t,    m <- m + c_t F_t (theta*_t - theta_0),    theta_hat_t = theta_0 + m / S

What the paper leaves open, and our choice: it merges a target with donors, a stream has no such task; our target is
theta*_1, what was served when nothing else was known. The floor is absolute: where Fishers are smaller altogether (a
high temperature) the target decides alone. At most 2,048 images of a task, as even over classes as they can be; a
Fisher that is 0 throughout is not normalised. One coefficient for all tasks: the authors search a pair's on validation
data.

Published numbers: the paper's are of language models on GLUE, the target task's trained head; in the merging
literature CLIP, a zero-shot head a task, task id given.

`fisher_empirical` was `fisher` in earlier versions: the labels' Fisher, every F_i plus eps mean(F_i), eps = 1e-6, no
factor c_i, so that a task that is fitted badly has larger gradients and weighs more; where all Fishers are 0 the plain
average is served. `fisher_fb` is FusionBench's: F_i <- (F_i + 1e-6) / (||F_i||_2 + 1e-6), and F_i the square of a
batch's summed sqrt(p) log p (`kind=sqrtp_batch`), so it depends on the batch (theirs 32, ours the training's) and on
how many images are taken (theirs 256).
"""

from typing import Literal

from bench.method import START, Rule, Task, Weights, method, option, rule, state
from bench.method.tools.fisher_kinds import data_of

FLOOR = 1e-6  #: the authors' `fisher_floor`, of the target alone


@rule("fisher")
class Fisher(Rule):
    """Mean of the task models weighted by their Fishers."""

    data = "labelled"
    at_start = {start: {"kind": "exact", "normalize": "l2"} for start in START}
    kind: Literal["empirical", "exact", "mammoth", "batchmean", "batchmean_seen", "argmax_batch", "sqrtp_batch"] = (
        option("empirical", help="estimator of the Fisher")
    )
    eps: float = option(
        1e-6, help="share of a Fisher's mean that is added to it (normalize=none)", ge=0, search=(1e-8, 1e-1)
    )
    normalize: Literal["none", "fusionbench", "l2"] = option(
        "none", help="every Fisher over its L2 norm, with FusionBench's constants, or the authors' and their floor"
    )
    S: Weights = state()
    m: Weights = state()

    @property
    def needs(self) -> tuple[str, ...]:
        """The Fisher of that kind."""
        return (f"fisher:{self.kind}",)

    @property
    def reads(self) -> Literal["none", "unlabelled", "labelled", "oracle"]:
        """Labels where the kind does."""
        return data_of(self.kind)

    @property
    def order_invariant(self) -> bool:  # type: ignore[override]
        """Not where the first task is the target."""
        return self.normalize != "l2"

    def merge(self, task: Task) -> Weights:
        """Add this task to both sums."""
        F = self._weight(task)
        self.S = self.S + F
        self.m = self.m + F * (task.trained - task.pretrained)
        average = task.served + (task.trained - task.served) / task.t  # where S is still 0, served has been one so far
        S, known = self.S.vector, self.S.vector > 0
        best = task.pretrained + self.m / S.where(known, 1)
        return best.map(lambda v: v.where(known, average.vector))

    def _weight(self, task: Task) -> Weights:
        """c_t F_t."""
        F = task.fisher(self.kind)
        if self.normalize == "none":
            return F + self.eps * float(F.vector.double().mean())
        norm = F.norm()
        if self.normalize == "fusionbench":
            return (F + 1e-6) / (norm + 1e-6)
        floored = F.map(lambda v: v.clamp(min=FLOOR)) if task.t == 1 else F
        return floored / (norm or 1.0)


PAPER = "arXiv:2111.09832"
method("fisher", "plain+fisher@pretrained", title="Fisher merging", paper=PAPER, about="Fisher-weighted mean")
method(
    "fisher_empirical",
    "plain+fisher@pretrained:kind=empirical,normalize=none",
    title="Fisher merging (labels' Fisher)",
    paper=PAPER,
    status="variant",
    about="`fisher` of earlier versions",
)
method(
    "fisher_fb",
    "plain+fisher@pretrained:kind=sqrtp_batch,normalize=fusionbench",
    title="Fisher merging (FusionBench)",
    paper=PAPER,
    status="variant",
    about="depends on the batch size and the number of images",
)
