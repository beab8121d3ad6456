"""LiNeS, Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging (Wang et al., arXiv:2410.17146).

The multi-task vector is scaled by more the deeper a tensor lies, since shallow layers are shared by tasks:

    theta_hat_t = theta_0 + (alpha + beta l / (L - 1)) sum_i tau_i,    alpha = 1 / t

with l the number of the tensor's residual block, 0 nearest to the input, of L. The running sum is all it carries (P).
In the authors' code (wang-kee/LiNeS, src/eval/eval.py) alpha is ||sum_i tau_i||_1 / (t ||merged||_1), which is 1 / t
where the merged vector is the sum, as here; they also scale those of TIES and Consensus. (Their other use, on one task
with alpha + beta = 1, is no merge.)

What the paper leaves open, and our choice: l is read from the tensor's name, counted through the stages of a model that
has some, among the blocks that are adapted (`blocks` in the record says how many were recognised; with fewer than two
every tensor is at l = 0); tensors outside of blocks, embeddings and the last norm, have l = 0, as in that code. beta is
0.3, the scale of task arithmetic; the authors choose it on validation images for each number of tasks, from 0 to 1.
After one task theta_hat_1 lies beyond theta*_1 in all but the first block.

Published numbers: CLIP, 8 to 20 tasks, a zero-shot head a task, task id given.
"""

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state


@rule("lines")
class LiNeS(TaskVectorRule):
    """Task vectors, added with a scale that rises with depth."""

    order_invariant = True
    beta: float = option(0.3, help="how much more the last block's scale is than the first's", ge=0, search=(0.05, 1.5))
    total: Weights = state()

    def merge(self, task: Task) -> Weights:
        """Add this task's vector to the sum, and scale it by depth."""
        import torch

        from bench.method.tools.depth import block_numbers

        self.total = self.total + self.tau(task)
        numbers, blocks = block_numbers(self.total.layout.names)
        relative = [(number or 0) / max(1, blocks - 1) for number in numbers]
        task.log(blocks=blocks)
        scale = 1 / task.t + self.beta * torch.tensor(relative, dtype=torch.float64)
        return task.pretrained + self.total * self.total.spread(scale).vector


method(
    "lines",
    "plain+lines@pretrained",
    title="LiNeS",
    paper="arXiv:2410.17146",
    about="task arithmetic with a scale that rises with depth",
)
