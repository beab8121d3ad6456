"""References: what is possible with less (a frozen backbone) and with more (all data, or the true task) than allowed.

* `linear_probe`: theta_hat_t = theta_0; only heads are trained, with the budget that every method's heads have.
* `joint`: one training on the union of all tasks from theta_0, all heads under one softmax; as many epochs as a task.
* `joint_local`: the same data, but each sample's cross-entropy over its own task's classes, heads concatenated: the
  ceiling of anything that keeps per-task heads. The gap to `joint` is confusion between heads, not forgetting.
* `ncm`, `ridge`: theta_0 too, with prototypes (SimpleCIL, arXiv:2303.07338) or ridge regression on random features
  (RanPAC, arXiv:2307.02251, without its first-session adaptation) in place of trained heads.
* `experts`: task i is answered by theta*_i and its own head, the true task given: the normaliser of the merging
  literature.
"""

from bench.method import Rule, Task, Trainer, Weights, method, rule, trainer


@trainer("frozen")
class Frozen(Trainer):
    """Heads only."""

    adapt = False


@trainer("joint")
class Joint(Trainer):
    """All tasks at once, one softmax over all classes."""

    data = "seen"


@trainer("joint_local")
class JointLocal(Trainer):
    """All tasks at once, each sample's softmax over its own task's classes."""

    data, softmax = "seen", "own"


@rule("experts")
class Experts(Rule):
    """Each task served by its own weights; the true task is given."""

    experts = True

    def merge(self, task: Task) -> Weights:
        """The newest expert."""
        return task.trained


method("linear_probe", "frozen+last@pretrained", title="Frozen backbone", status="baseline", about="heads only")
method(
    "ncm", "frozen+last@pretrained/ncm", title="NCM on the frozen backbone", paper="arXiv:2303.07338",
    status="baseline", about="class means of features, compared by cosine",
)  # fmt: skip
method(
    "ridge", "frozen+last@pretrained/ridge", title="Ridge on random features, frozen backbone",
    paper="arXiv:2307.02251", status="baseline", about="RanPAC without first-session adaptation",
)  # fmt: skip
method("joint", "joint+last@pretrained", title="Joint", status="oracle", about="all data at once")
method("joint_local", "joint_local+last@pretrained", title="Joint, local softmax", status="oracle", about="all data")
method("experts", "plain+experts@pretrained", title="Experts, task given", status="oracle", about="one model a task")
