"""Dark Experience Replay, DER++ (arXiv:2004.07211).

The buffer of ER keeps with each image the logits z that the model had when it was stored, and a step asks for them:

    L = CE(B) + alpha ||z_theta(x') - z'||^2 + beta CE(M'')

with two minibatches of the buffer, drawn one after the other: (x', z') to be matched, M'' to be classified. As in
Mammoth (models/derpp.py), ||.||^2 is the mean over images and columns.

**Variant**: there z' is taken during training, whenever a batch enters the reservoir, from the augmented view and over
all columns that will ever be. Here the buffer is filled after a task (bench/method/tools/replay.py), so z' are the
logits of theta*_t, on the test view, on the loss's scale (divided by the training temperature), over the classes seen
until then; columns that came later are not matched. The paper argues for logits taken along the way.

Open choices: alpha 0.3 and beta 0.5 (the paper tunes alpha in 0.1 ... 1 and beta in 0.5, 1 by data set and buffer); 200
images, 32 a minibatch.

Published numbers: one growing head, class-incremental and task-incremental (Table 2), from random weights, SGD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Step, Task, method, option, state, trainer
from bench.method.tools.replay import Replay

if TYPE_CHECKING:
    from torch import Tensor

IMAGES_A_PASS = 64


@trainer("derpp")
class DERpp(Replay):
    """Plain training plus stored logits to match and stored labels to find."""

    alpha: float = option(0.3, help="weight of the stored logits", ge=0, search=(0.05, 2.0))
    beta: float = option(0.5, help="weight of the stored labels", ge=0, search=(0.1, 2.0))
    logits: Tensor = state(list)  #: (kept, classes seen); NaN where a class had not come yet

    def loss(self, step: Step) -> Tensor | float:
        """alpha MSE(M') + beta CE(M'')."""
        if len(self.images) == 0:
            return 0.0
        from torch.nn.functional import cross_entropy, mse_loss

        M = self.draw(step)
        told, z = step.logits(step.weights, step.view(self.images[M], "logits"), "seen"), self.logits[M]
        known = ~z.isnan()
        matched = mse_loss(told[:, : z.shape[1]][known], z[known])
        M = self.draw(step)
        told = step.logits(step.weights, step.view(self.images[M], "labels"), "seen")
        return self.alpha * matched + self.beta * cross_entropy(told, self.columns[M])

    def learnt(self, task: Task) -> None:
        """Task t's images come into the reservoir, with theta*_t's logits."""
        import torch

        places, new = self.fill(task)
        with torch.no_grad():
            fresh = torch.cat([task.logits(task.trained, x, "seen") for x in new.split(IMAGES_A_PASS)])
        kept = fresh.new_full((len(self.images), fresh.shape[1]), torch.nan)
        if len(self.logits):
            kept[: len(self.logits), : self.logits.shape[1]] = self.logits
        kept[places] = fresh
        self.logits = kept


PAPER = "arXiv:2004.07211"
method(
    "derpp", "derpp+last@previous", title="DER++, logits after the task", paper=PAPER, status="variant",
    about="replay of 200 images and their logits",
)  # fmt: skip
