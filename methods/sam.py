"""Sharpness-Aware Minimization, SAM (arXiv:2010.01412), and its scale-invariant form ASAM (arXiv:2102.11600).

Each step takes its gradient not at theta but where the loss is (to first order) worst near it, g = grad L(theta) on the
same batch:

    SAM    theta + rho g / ||g||
    ASAM   theta + rho T^2 g / ||T g||,   T = |theta| + eta   (elementwise)

so that flat minima are found, which lose less when they are merged. The point moves with theta: no gradient flows
through the ascent. A step costs two passes instead of one, in `opt_steps` it counts once.

Open choices: rho 0.05 (SAM) and 0.5 with eta 0.01 (ASAM) are the papers' for images; under LoRA theta and g are the
dense adapted weights, not the factors (whose scale is arbitrary); g is of the task loss alone; heads are not perturbed
(the papers perturb all parameters); one g for the whole batch.

Published numbers: neither paper learns tasks in turn; one head over all classes of a data set.
"""

from bench.method import Trainer, Weights, method, option, trainer

TINY = 1e-12  #: a gradient of zero gives no direction: the step stays at theta


@trainer("sam")
class SAM(Trainer):
    """The loss at the end of an ascent step of length rho."""

    rho: float = option(0.05, help="length of the ascent step", ge=0, search=(0.01, 0.5))

    def ascent(self, theta: Weights, gradient: Weights) -> Weights:
        """theta + rho g / ||g||."""
        return theta + gradient * (self.rho / max(gradient.norm(), TINY))


@trainer("asam")
class ASAM(Trainer):
    """The loss at the end of an ascent step whose length is measured in units of each weight."""

    rho: float = option(0.5, help="length of the ascent step, relative to the weights", ge=0, search=(0.05, 2.0))
    eta: float = option(0.01, help="added to the weights' sizes", ge=0)

    def ascent(self, theta: Weights, gradient: Weights) -> Weights:
        """theta + rho T^2 g / ||T g||."""
        T = theta.map(lambda v: v.detach().abs() + self.eta)
        scaled = T * gradient
        return theta + T * scaled * (self.rho / max(scaled.norm(), TINY))


method("sam", "sam+last@previous", title="SAM", paper="arXiv:2010.01412", status="baseline", about="flat minima")
method(
    "sam_average", "sam+average@merged", title="SAM, 1/t", paper="arXiv:2010.01412", status="variant",
    about="flat minima, merged",
)  # fmt: skip
method("asam", "asam+last@previous", title="ASAM", paper="arXiv:2102.11600", status="baseline", about="flat minima")
