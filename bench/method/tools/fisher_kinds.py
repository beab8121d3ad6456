"""Which estimators of the Fisher read labels, for rules whose kind is an option. Torch-free."""

from __future__ import annotations

from typing import Literal

LABELLED = frozenset({"empirical", "mammoth", "batchmean", "batchmean_seen"})


def data_of(kind: str) -> Literal["labelled", "unlabelled"]:
    """What a rule that takes the Fisher of that kind reads of the task's training data: :attr:`Rule.reads`."""
    return "labelled" if kind in LABELLED else "unlabelled"
