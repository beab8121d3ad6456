"""SLERP: a spherical step instead of a straight one (Shoemake, "Animating Rotation with Quaternion Curves", 1985).

Every tensor of theta_hat_{t-1} is turned by 1/t of its angle to that of theta*_t, around an origin o:

    theta_hat_t = o + sin((1 - 1/t) omega) / sin(omega) u + sin(omega / t) / sin(omega) v,
    u = theta_hat_{t-1} - o,  v = theta*_t - o,  omega the angle between u and v

and theta_hat_1 = theta*_1. Where omega is 0 this is the running average; where two tasks point to different sides the
average shortens the change, and this does not. Nothing is carried. The order of tasks matters.

There is no paper on merging by it: it comes from mergekit, whose slerp turns raw tensors (o = 0) and whose nuslerp
takes o = theta_0 where a base model is given. Our default is o = theta_0: raw tensors of models that were trained from
the same weights are nearly parallel, so that o = 0 (`origin=zero`) hardly differs from the average. As in mergekit,
tensor by tensor, and along the straight line where |cos omega| > 0.9995; so where u or v is 0, too (there mergekit
counts them as at right angles).

Published numbers: none; mergekit is used for language models, two at a time.
"""

from typing import Literal

from bench.method import Rule, Task, Weights, method, option, rule

PARALLEL = 0.9995  #: mergekit's DOT_THRESHOLD


@rule("slerp")
class Slerp(Rule):
    """The running average along the sphere."""

    origin: Literal["pretrained", "zero"] = option("pretrained", help="what tensors are turned around")

    def merge(self, task: Task) -> Weights:
        """One step of 1/t of the angle, tensor by tensor."""
        import torch

        if task.t == 1:
            return task.trained
        u, v = task.served, task.trained
        if self.origin == "pretrained":
            u, v = u - task.pretrained, v - task.pretrained
        length = u.norms() * v.norms()
        cos = (u.dots(v) / length.where(length > 0, 1)).clamp(-1, 1)
        straight = (length == 0) | (cos.abs() > PARALLEL)
        omega = torch.acos(cos.where(~straight, 0.0))
        step, share = 1 / task.t, torch.sin(omega / task.t) / torch.sin(omega)
        share = share.where(~straight, step)
        longer = torch.sin((1 - step) * omega) / torch.sin(omega) + share - 1
        task.log(angle=float(omega.where(~straight, torch.acos(cos)).mean().rad2deg()))
        # As a correction to the average: a tensor that no task moved comes out bit for bit.
        return task.served + (v - u) * u.spread(share).vector + u * u.spread(longer.where(~straight, 0.0)).vector


method("slerp", "plain+slerp@merged", title="SLERP", status="variant", about="the running average along the sphere")
