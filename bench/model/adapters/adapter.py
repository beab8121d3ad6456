"""What a kind of adapter is: the tensors of a model that it names, and what an optimiser changes for one task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from torch import Tensor, nn
from typing_extensions import Self

from bench.config.schema import AdapterConfig
from bench.method.weights import Weights

Options = TypeVar("Options", bound=AdapterConfig)


class Adapter(ABC, Generic[Options]):
    """What an optimiser changes for one task, and the dense weights that it stands for.

    A kind is a subclass in a file of this folder that is called as the protocol's ``adapter`` calls it. Its options are
    the section of that name in the protocol (:class:`~bench.config.schema.AdapterConfig` where it has none), which also
    says what a trainer may keep fixed. Nothing else in the harness knows of kinds.

    Attributes:
        parameters: what is trained.
    """

    parameters: list[Tensor]

    @classmethod
    @abstractmethod
    def names(cls, module: nn.Module, options: Options, where: str) -> list[str]:
        """The parameters of ``module`` that this kind may change, in the module's own order; at least one.

        Args:
            module: the backbone without a head; every fused ``qkv`` is a :class:`~bench.model.split_qkv.SplitQKV`.
            options: the kind's section of the protocol.
            where: how a message begins.

        Raises:
            UserError: the options name none, or something that this kind cannot adapt.
        """

    @classmethod
    @abstractmethod
    def begin(cls, start: Weights, options: Options, factors: str, seed: int) -> Self:
        """The adapter of one task: :meth:`weights` gives ``start`` bit for bit until a step is taken.

        Args:
            start: W_start (P,), never written to.
            options: the kind's section of the protocol.
            factors: what the trainer trains, one of the options' ``factors``.
            seed: of whatever is drawn; the global generator is left alone.
        """

    @abstractmethod
    def weights(self) -> Weights:
        """W (P,), with its graph to :attr:`parameters`."""


def every_parameter(module: nn.Module) -> list[str]:
    """The names of all parameters, in the module's order."""
    return [name for name, _ in module.named_parameters()]
