"""What every kind of classifier does: take in a task under the served weights, answer, and be put back on resuming."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from bench.config.schema import ProtocolConfig
from bench.data.scenario import CLASS_INCREMENTAL, Scenario
from bench.data.stream import TaskData
from bench.method.weights import Weights
from bench.model.heads import Head, concatenate

#: of one task: features (n, D) float32 of its training images under the served weights, and their columns (n,)
Features = Callable[[TaskData], tuple[Tensor, Tensor]]


class Classifier(Protocol):
    """Logits over all classes seen."""

    def __call__(self, features: Tensor) -> Tensor:
        """(b, classes) of features (b, D)."""
        ...

    def digest(self) -> str:
        """Equal for equal bits."""
        ...


class Serving:
    """The heads as trained: ``linear`` and ``zero_shot``. Base of what is fitted after a merge.

    Args:
        protocol: of the cell.
        dim: the size D of a feature vector.
        device: where features are.
        run_seed: names the random draws.
        scenario: says which heads are open at test.
    """

    carried = 0  #: bytes that cross a task boundary, beyond the rows and biases of a head
    beside_pretrained: ClassVar[bool] = False  #: whether features of theta_0 stand beside those of the served weights

    def __init__(
        self, protocol: ProtocolConfig, dim: int, device: str, run_seed: int, scenario: Scenario = CLASS_INCREMENTAL
    ) -> None:
        self.protocol, self.dim, self.device, self.run_seed = protocol, dim, device, run_seed
        self.scenario = scenario

    def fit(
        self, tasks: Sequence[TaskData], trained: Sequence[Head], features: Features, softmax: str = "all"
    ) -> dict[str, float]:
        """Take in the tasks just trained (all seen, after a joint training).

        Args:
            tasks: in order.
            trained: their heads as trained (see :meth:`Scenario.by_head`), which are not changed.
            features: reads the tasks' images.
            softmax: the trainer's: over all heads of ``tasks`` together, or over the ``own`` one.

        Returns:
            Numbers for the record.
        """
        return {}

    def beside(self, pretrained: Weights) -> tuple[Weights, ...]:
        """Weights whose features stand before those of the served ones, in what is fitted and classified."""
        return (pretrained,) if self.beside_pretrained else ()

    def classifier(self, trained: Sequence[Head]) -> Classifier:
        """What answers now, given the trained heads of all tasks seen."""
        return concatenate(self.scenario.open_heads(trained))

    def tensors(self) -> dict[str, Tensor]:
        """What has to be there again when a run is resumed after a task."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` gave."""


class Fitted(Serving):
    """Heads of its own, fitted once to each task."""

    def __init__(
        self, protocol: ProtocolConfig, dim: int, device: str, run_seed: int, scenario: Scenario = CLASS_INCREMENTAL
    ) -> None:
        super().__init__(protocol, dim, device, run_seed, scenario)
        self._heads: list[Head] = []

    def classifier(self, trained: Sequence[Head]) -> Classifier:
        """These heads."""
        return concatenate(self.scenario.open_heads(self._heads))

    def tensors(self) -> dict[str, Tensor]:
        """Its heads."""
        return {name: x for i, head in enumerate(self._heads) for name, x in head.tensors(f"{i}.").items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Its heads."""
        count = sum(name.endswith(".weight") for name in tensors)
        self._heads = [Head.of(tensors, self.device, f"{i}.") for i in range(count)]
