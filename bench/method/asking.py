"""How a rule asks for a statistic, and how it declares what it needs. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.common.errors import UserError
from bench.common.strict_json import finite
from bench.method.weights import Weights

if TYPE_CHECKING:
    from bench.method.api import Gram

#: needs that are no statistics: training images (with or without labels), and validation images (of oracles)
IMAGES = ("images", "validation")


@dataclass(frozen=True)
class Need:
    """One thing that a plugin reads of a task besides weights, spelled ``key[:kind][@elsewhere]``.

    ``fisher:exact`` is the Fisher of that kind at theta*_t, ``fisher:exact@elsewhere`` at other weights; ``gram`` has
    no kinds; ``images`` and ``validation`` are images themselves.
    """

    key: str
    kind: str = ""
    elsewhere: bool = False

    @classmethod
    def parse(cls, text: str) -> Need:
        """What a spelling means.

        Raises:
            UserError: something else than ``elsewhere`` stands after ``@``.
        """
        rest, at, where = text.partition("@")
        if at and where != "elsewhere":
            raise UserError(f"needs: {text!r}: what stands after @ can only be 'elsewhere'")
        key, _, kind = rest.partition(":")
        return cls(key, kind, bool(at))

    def __str__(self) -> str:
        return self.key + f":{self.kind}" * bool(self.kind) + "@elsewhere" * self.elsewhere


class AsksByName:
    """What every Task does alike: the spellings of ``statistic`` that rule authors know, and the log."""

    def statistic(
        self, key: str, *, kind: str | None = None, samples: int | None = None, at: Weights | None = None
    ) -> Any:
        """See :meth:`bench.method.Task.statistic`."""
        raise NotImplementedError

    scalars: dict[str, float | None]

    def log(self, **scalars: float) -> None:
        """Keep numbers of this merge; one that is not finite as None, since records are strict JSON."""
        self.scalars |= {name: finite(value) for name, value in scalars.items()}

    def fisher(self, kind: str = "empirical", at: Weights | None = None) -> Weights:
        """Diagonal Fisher (P,) of the current head's loss at ``at`` (default theta*_t)."""
        found: Weights = self.statistic("fisher", kind=kind, at=at)
        return found

    def gram(self, samples: int) -> dict[str, Gram]:
        """Second moments of layer inputs at theta*_t on ``samples`` random training images."""
        found: dict[str, Gram] = self.statistic("gram", samples=samples)
        return found
