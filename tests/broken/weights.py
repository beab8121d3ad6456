"""Broken on purpose: the loss is taken where theta has no say, so nothing is ever learnt."""

import numpy as np

from bench.method import Trainer, Weights, trainer


@trainer("broken_weights")
class Stuck(Trainer):
    """The loss at the start of the task."""

    def weights(self, theta: Weights, start: Weights, rng: np.random.Generator) -> Weights:
        """A difference times 0."""
        return start + (theta - start) * 0
