"""Experience Replay, ER (Ratcliff 1990; Chaudhry et al., arXiv:1902.10486; Riemer et al., arXiv:1810.11910), and
ER-ACE (Caccia et al., arXiv:2104.05025).

A buffer holds labelled images of past tasks, and every step learns from a minibatch M of them beside its own batch B:

    L = CE(B) + weight CE(M),    both over the classes of all tasks seen, whose heads are all trained

Few old images among many new ones teach the old heads to keep still. ER-ACE therefore takes CE(B) over the classes of
the current task alone (as every method here that has no buffer does), and CE(M) over all as above.

The buffer is a reservoir over the stream, see bench/method/tools/replay.py: 200 images (the smallest of the DER++
paper's sizes), 32 a step, in training views drawn anew. They are counted as carried, and tables show the method apart.

Open choices: Mammoth (models/er.py) takes one mean over B and M together, which weighs M by its size; a sum with weight
1 is what DER++ does. Current images are in the buffer from the next task on. What is drawn does not depend on
`weight`; the learning rate is every method's.

Published numbers: one growing head, class-incremental and task-incremental (DER++, arXiv:2004.07211, Table 2), from
random weights, SGD; ER-ACE's online, one pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Step, Task, method, option, trainer
from bench.method.tools.replay import Replay

if TYPE_CHECKING:
    from torch import Tensor


@trainer("er")
class ER(Replay):
    """Plain training plus the cross-entropy of a minibatch of the buffer."""

    weight: float = option(1.0, help="weight of the buffer's loss", ge=0, search=(0.1, 10.0))

    def loss(self, step: Step) -> Tensor | float:
        """weight CE(M)."""
        if len(self.images) == 0:
            return 0.0
        from torch.nn.functional import cross_entropy

        M = self.draw(step)
        logits = step.logits(step.weights, step.view(self.images[M]), "seen")
        return self.weight * cross_entropy(logits, self.columns[M])

    def learnt(self, task: Task) -> None:
        """Task t's images come into the reservoir."""
        self.fill(task)


@trainer("er_ace")
class ERACE(ER):
    """The same, with the current batch's softmax over its own task's classes."""

    softmax = "own"


method("er", "er+last@previous", title="ER", paper="arXiv:1902.10486", status="baseline", about="replay of 200 images")
method(
    "er_average", "er+average@merged", title="ER, 1/t", paper="arXiv:1902.10486", status="variant",
    about="replay, merged",
)  # fmt: skip
method(
    "er_ace", "er_ace+last@previous", title="ER-ACE", paper="arXiv:2104.05025", status="baseline",
    about="replay of 200 images, asymmetric cross-entropy",
)  # fmt: skip
