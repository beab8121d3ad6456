"""Which class answers for which ``head.kind``."""

from __future__ import annotations

from bench.config.schema import HeadKind, ProtocolConfig
from bench.data.scenario import CLASS_INCREMENTAL, Scenario
from bench.run.classifiers.align import Align
from bench.run.classifiers.lda import Discriminant
from bench.run.classifiers.ncm import Means, MeansOfBoth
from bench.run.classifiers.refit import Refit
from bench.run.classifiers.ridge import Ridge
from bench.run.classifiers.serving import Serving

KINDS: dict[HeadKind, type[Serving]] = {
    "linear": Serving, "zero_shot": Serving, "refit": Refit, "align": Align, "ncm": Means, "ncm_both": MeansOfBoth,
    "lda": Discriminant, "ridge": Ridge,
}  # fmt: skip


def serving_of(
    protocol: ProtocolConfig, dim: int, device: str, run_seed: int, scenario: Scenario = CLASS_INCREMENTAL
) -> Serving:
    """What the protocol asks for, before the first task; ``dim`` is the size D of a feature vector."""
    return KINDS[protocol.head.kind](protocol, dim, device, run_seed, scenario)
