"""Fisher merging (Matena & Raffel, "Merging Models with Fisher-Weighted Averaging", arXiv:2111.09832).

Entry by entry, with F_i the diagonal Fisher at theta*_i,

    theta_hat_t = sum_{i<=t} F_i theta*_i / sum_{i<=t} F_i

the minimiser of the summed quadratic losses, carried as two sums (2P), centred on theta_0 for float32:

    S <- S + F_t,    m <- m + F_t (theta*_t - theta_0),    theta_hat_t = theta_0 + m / S

What the paper leaves open, and our choice: Fisher is `empirical`, per sample, a mean over at most 2,048; every F_i gets
eps mean(F_i) added, eps = 1e-6, relative since an absolute 1e-6 swamps Fishers near 1e-8 and silently gives the plain
average; so an entry of which no task knows anything averages the models by their mean Fisher, and where all Fishers are
0 altogether the plain average is served. No factor evens out tasks: one that is fitted badly has larger gradients and
weighs more. FusionBench does even them out, F_i <- (F_i + 1e-6) / (||F_i||_2 + 1e-6), with a Fisher of its own
(`normalize=fusionbench`, `kind=sqrtp_batch`).

Published numbers: the paper's are of language models on GLUE, the target task's trained head; in the merging
literature CLIP, a zero-shot head a task, task id given.
"""

from typing import Literal

from bench.method import Rule, Task, Weights, method, option, rule, state


@rule("fisher")
class Fisher(Rule):
    """Mean of the task models weighted by their Fishers."""

    data, order_invariant = "labelled", True
    kind: Literal["empirical", "exact", "mammoth", "batchmean", "argmax_batch", "sqrtp_batch"] = option(
        "empirical", help="estimator of the Fisher"
    )
    eps: float = option(
        1e-6, help="share of a Fisher's mean that is added to it (normalize=none)", ge=0, search=(1e-8, 1e-1)
    )
    normalize: Literal["none", "fusionbench"] = option("none", help="fusionbench: every Fisher over its L2 norm")
    S: Weights = state()
    m: Weights = state()

    @property
    def needs(self) -> tuple[str, ...]:
        """The Fisher of that kind."""
        return (f"fisher:{self.kind}",)

    def merge(self, task: Task) -> Weights:
        """Add this task to both sums."""
        F = task.fisher(self.kind)
        if self.normalize == "fusionbench":
            F = (F + 1e-6) / (F.norm() + 1e-6)
        else:
            F = F + self.eps * float(F.vector.double().mean())
        self.S = self.S + F
        self.m = self.m + F * (task.trained - task.pretrained)
        average = task.served + (task.trained - task.served) / task.t  # where S is still 0, served has been one so far
        S, known = self.S.vector, self.S.vector > 0
        best = task.pretrained + self.m / S.where(known, 1)
        return best.map(lambda v: v.where(known, average.vector))


PAPER = "arXiv:2111.09832"
method("fisher", "plain+fisher@pretrained", title="Fisher merging", paper=PAPER, about="Fisher-weighted mean")
method(
    "fisher_fb",
    "plain+fisher@pretrained:kind=sqrtp_batch,normalize=fusionbench",
    title="Fisher merging (FusionBench)",
    paper=PAPER,
    status="variant",
)
