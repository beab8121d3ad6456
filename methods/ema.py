"""Best-in-TIME (Dziadzio et al., "How to Merge Your Multimodal Models Over Time?", arXiv:2412.06712): a reconstruction.

TIME splits merging over time into how a task's training is initialised, what is deployed after it, and the technique
that merges. Of its combinations an exponential moving average that does both comes out best:

    theta_hat_0 = theta_0,    theta_hat_t = decay theta_hat_{t-1} + (1 - decay) theta*_t

with the training of task t begun at theta_hat_{t-1} (start `merged`). Nothing is carried. The paper's conclusion
anticipates one that this benchmark also comes to: how models are initialised and served over time matters more than the
rule that merges them. It is to be cited for that.

Only the abstract and summaries of the paper could be read, no equation and no code, hence a reconstruction. Ours: the
average begins at theta_0 (which is a checkpoint like the others), decay 0.5. After the first task its step is that of
CoMA (arXiv:2312.08977) with alpha = 1 - decay, which begins at theta*_1.

Published numbers: FoMo-in-Flux, contrastive pretraining of CLIP, zero-shot heads.
"""

from bench.method import Rule, Task, Weights, method, option, rule


@rule("ema")
class EMA(Rule):
    """An exponential average that began at theta_0."""

    reconstruction = True
    serves_first = False
    decay: float = option(0.5, help="weight of what was served before", ge=0, lt=1, search=(0.1, 0.95))

    def merge(self, task: Task) -> Weights:
        """One step of the average."""
        return task.served + (task.trained - task.served) * (1 - self.decay)


method(
    "ema",
    "plain+ema@merged",
    title="Best-in-TIME",
    paper="arXiv:2412.06712",
    status="reconstruction",
    about="an exponential average initialises and is served",
)
