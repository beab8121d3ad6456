"""What a kind of adapter is: the tensors of a model that it names, and what an optimiser changes for one task."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from torch import Tensor, nn
from typing_extensions import Self

from bench.common.errors import UserError
from bench.config.schema import AdapterConfig, SelectedConfig
from bench.method.weights import Weights
from bench.model.split_qkv import SplitQKV

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

    def hold(self, rows: Mapping[str, Tensor]) -> None:
        """Give a factor that is kept fixed these rows (k, in) by tensor; kinds without such a factor are not asked."""
        raise NotImplementedError

    @abstractmethod
    def weights(self) -> Weights:
        """W (P,), with its graph to :attr:`parameters`."""


def every_parameter(module: nn.Module) -> list[str]:
    """The names of all parameters, in the module's order."""
    return [name for name, _ in module.named_parameters()]


def selected(module: nn.Module, options: SelectedConfig, where: str) -> list[str]:
    """Weights of the modules that ``options.modules`` matches; without it, of every attention's ``targets``.

    Args:
        module: as :meth:`Adapter.names` gets it.
        options: the kind's section of the protocol.
        where: how a message begins, the section's name included.

    Raises:
        UserError: the options name none, or something that is neither Linear nor Conv2d.
    """
    if options.modules is None:
        adapted = set(_projections(module, options.targets, where))
    else:
        adapted = set(_matching(module, options.modules, where))
    return [name for name, _ in module.named_parameters() if name in adapted]


def _projections(module: nn.Module, targets: Iterable[str], where: str) -> Iterator[str]:
    """Weights of the parts of every fused query-key-value layer that ``targets`` names."""
    fused = {name: layer for name, layer in module.named_modules() if isinstance(layer, SplitQKV)}
    section = where.rpartition(": ")[2]
    if not fused:
        raise UserError(
            f"{where}.targets: {type(module).__name__} has no fused qkv layer whose parts could be adapted; name "
            f"Linear or Conv2d modules, for example {section}.modules: {common_layers(module)}, or use adapter: full"
        )
    for name, layer in module.named_modules():
        if name.endswith(".qkv") and isinstance(layer, nn.Linear):
            raise UserError(
                f"{where}.targets: the {layer.out_features} rows of {name} are not q, k and v; use {section}.modules"
            )
    for name, layer in fused.items():
        if not layer.thirds and set(targets) != set("qkv"):
            raise UserError(
                f"{where}.targets: the rows of {name} are not q, k and v in three equal parts, so that "
                f"{', '.join(targets)} alone cannot be adapted; use {section}.targets=[q,k,v] or {section}.modules"
            )
        yield from (f"{name}.{target}.weight" for target in targets)


def common_layers(module: nn.Module) -> str:
    """A pattern that :func:`_matching` takes: of keys and values, else of the most frequent name of Linears, else of
    ungrouped convolutions. For models of convolutions and few Linears these are what there is most of.
    """
    parts = {part for layer in module.modules() if isinstance(layer, SplitQKV) for part in layer.children()}
    layers = [(name.rpartition(".")[2], layer) for name, layer in module.named_modules() if layer not in parts]
    other = {last for last, layer in layers if not isinstance(layer, nn.Linear | nn.Conv2d)}
    for kind in (nn.Linear, nn.Conv2d):
        found = Counter(last for last, layer in layers if isinstance(layer, kind) and getattr(layer, "groups", 1) == 1)
        names = [last for last, _ in found.most_common() if last not in other]
        for pair in (("k_proj", "v_proj"), ("k", "v")):
            if set(pair) <= set(names):
                return rf".*\.({'|'.join(pair)})"
        if names and found[names[0]] > 2:
            return rf".*\.{'kv' if 'kv' in names else names[0]}"
    return "|".join(re.escape(name) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d))


def _matching(module: nn.Module, pattern: str, where: str) -> Iterator[str]:
    """Weights of the modules whose whole name matches ``pattern``."""
    matched = {name: layer for name, layer in module.named_modules() if re.fullmatch(pattern, name)}
    if not matched:
        raise UserError(f"{where}.modules: no module of {type(module).__name__} is called {pattern!r}")
    for name, layer in matched.items():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            parts = f"; name its parts {name}.q, .k and .v" if isinstance(layer, SplitQKV) else ""
            raise UserError(
                f"{where}.modules: {pattern!r} matches {name or 'the whole model'}, a {type(layer).__name__}, "
                f"which is neither Linear nor Conv2d{parts}"
            )
        yield f"{name}.weight"
