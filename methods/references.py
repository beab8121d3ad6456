"""References: what is possible with less (a frozen backbone) and with more (all data, or the true task) than allowed.

* `linear_probe`: theta_hat_t = theta_0; only heads are trained, with the budget that every method's heads have.
* `joint`: one training on the union of all tasks from theta_0, all heads under one softmax; as many epochs as a task.
* `joint_local`: the same data, but each sample's cross-entropy over its own task's classes, heads concatenated: the
  ceiling of anything that keeps per-task heads. The gap to `joint` is confusion between heads, not forgetting.
* `ncm`, `ridge`: theta_0 too, with prototypes (SimpleCIL, arXiv:2303.07338) or ridge regression on random features
  (RanPAC, arXiv:2307.02251, without its first-session adaptation) in place of trained heads.
* `ranpac`, `aper`: first-session adaptation. theta*_1 is trained on the first task as any task is, by the protocol's
  adapter, loss and schedule, and served for ever; after that only heads are trained, for what is measured before
  merging. `ranpac` is the full RanPAC (10,000 random features, as in the authors' settings), `aper` takes prototypes of
  features of theta_0 and of theta*_1 side by side (ADAM, later called APER, arXiv:2303.07338, its dual-branch network).
  The papers adapt by AdaptFormer, SSF, VPT or, in APER, all weights, with SGD 0.01.
* `experts`: task i is answered by theta*_i and its own head, the true task given: the normaliser of the merging
  literature.

Published numbers: of RanPAC, APER and SimpleCIL class-incremental without the task id, one head over all classes seen,
fitted as here.
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


@trainer("first_session")
class FirstSession(Trainer):
    """The backbone is adapted to the first task; later ones train heads only, from where they start."""

    @classmethod
    def adapts(cls, t: int) -> bool:
        """At t = 1."""
        return t == 1


@rule("first")
class First(Rule):
    """theta*_1 served for ever."""

    def merge(self, task: Task) -> Weights:
        """What is served already, from the second task on."""
        return task.trained if task.t == 1 else task.served


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
method(
    "ranpac", "first_session+first@previous/ridge", title="RanPAC", paper="arXiv:2307.02251", status="published",
    about="first-session adaptation, ridge regression on random features",
)  # fmt: skip
method(
    "aper", "first_session+first@previous/ncm_both", title="APER", paper="arXiv:2303.07338", status="published",
    about="first-session adaptation, class means of both models' features",
)  # fmt: skip
method("joint", "joint+last@pretrained", title="Joint", status="oracle", about="all data at once")
method("joint_local", "joint_local+last@pretrained", title="Joint, local softmax", status="oracle", about="all data")
method("experts", "plain+experts@pretrained", title="Experts, task given", status="oracle", about="one model a task")
