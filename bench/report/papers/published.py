"""Published numbers: one file a family of papers that share a protocol, each number with its source and confidence.

They are never put into one column with measured ones. What may be compared with what is said here, in the family's
file, not in the tables: its own reproduction protocol, its dataset and method names, and why something is no match.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from bench.common.errors import UserError, unknown
from bench.common.paths import REPORTS
from bench.config.files import read_yaml
from bench.config.schema import Section

PUBLISHED = REPORTS / "published"
Metric = Literal["a_last", "avg_acc", "forgetting"]
Confidence = Literal["table", "log", "note", "page", "page+note", "aggregator"]
#: the sign that a printed value carries, and what it means
CONFIDENCE: dict[Confidence, tuple[str, str]] = {
    "table": ("ᵗ", "read in the paper's table or the authors' image of it"),
    "log": ("ˡ", "read in a log that the authors released, one run"),
    "note": ("ⁿ", "from a third-party reading note of the paper"),
    "page": ("ᵖ", "from a benchmark listing page"),
    "page+note": ("ᵇ", "two secondary sources that agree, a listing page and a reading note"),
    "aggregator": ("ᵃ", "from a search excerpt of a listing, the weakest"),
}


class Match(Section):
    """What a published name is here, and why a number under it cannot be compared with ours all the same."""

    ours: str | None = None  #: our name; None: the same name (datasets, metrics) or nothing of ours (methods)
    why_not: str = ""  #: not comparable, and why; empty: comparable
    title: str = ""  #: how tables print it


class Reproduction(Section):
    """The protocol that does what the family does, and the class order that it used."""

    protocol: str
    class_order_seed: int = Field(ge=0)


class PublishedNumber(Section):
    """One published or released value, in percent."""

    dataset: str
    n_tasks: int | None = Field(ge=1)  #: None: the source does not say
    method: str
    variant: str = ""
    metric: Metric
    value: float = Field(ge=-100, le=100)
    std: float | None = Field(default=None, ge=0)
    source: list[str] = Field(min_length=1)  #: keys of the family's ``sources``
    confidence: Confidence
    source_metric: str = ""  #: the source's own label, where it needed reading
    use: bool = True  #: False: never compared
    note: str = ""

    @property
    def name(self) -> str:
        """The method, or ``method/variant``: a key of the family's ``methods``."""
        return f"{self.method}/{self.variant}" if self.variant else self.method


class PublishedFamily(Section):
    """``reports/published/<key>.yaml``: numbers that were measured under one protocol."""

    key: str
    title: str
    paper: str = ""
    about: str
    reproduction: Reproduction | None = None
    why_not: str = ""  #: where there is no reproduction: why
    metrics: dict[Metric, Match] = {}  #: where the family's definition is not the one of the same name here
    datasets: dict[str, Match] = {}
    methods: dict[str, Match]
    doubts: list[str] = []  #: doubtful readings and conflicts between sources
    sources: dict[str, str]
    references: list[PublishedNumber]

    def match_dataset(self, name: str) -> Match:
        """What a published dataset is here."""
        match = self.datasets.get(name, Match())
        return match.model_copy(update={"ours": match.ours or name})

    def match_metric(self, name: Metric) -> Match:
        """What a published metric is here."""
        match = self.metrics.get(name, Match())
        return match.model_copy(update={"ours": match.ours or name})

    def match_method(self, number: PublishedNumber) -> Match:
        """What a published method is here; ``ours`` is None where it is not here."""
        return self.methods[number.name]

    def title_of(self, number: PublishedNumber) -> str:
        """A published method as tables print it."""
        return self.methods[number.name].title or number.name


def load_family(path: Path) -> PublishedFamily:
    """One family's file.

    Raises:
        UserError: an unknown key, source or method, a value out of range, a number twice, or neither a reproduction
            nor the reason why there is none.
    """
    family = read_yaml(path, PublishedFamily, key=path.stem)
    if (family.reproduction is None) == (not family.why_not):
        raise UserError(f"{path}: reproduction: give either it or why_not, and not both")
    seen: dict[tuple[object, ...], int] = {}
    for i, number in enumerate(family.references):
        where = f"{path}: references.{i}"
        for source in number.source:
            if source not in family.sources:
                raise unknown("source", source, family.sources, f"{where}.source")
        if number.name not in family.methods:
            raise unknown("method", number.name, family.methods, f"{where}.method")
        key = (number.dataset, number.n_tasks, number.method, number.variant, number.metric)
        if key in seen:
            raise UserError(
                f"{where}: {number.name} on {number.dataset}, T = {number.n_tasks}, {number.metric} is there already "
                f"(references.{seen[key]}); give one of them a variant or remove it"
            )
        seen[key] = i
    return family


def load_families(folder: Path = PUBLISHED) -> dict[str, PublishedFamily]:
    """Every family of a folder by key, in order of key.

    Raises:
        UserError: as :func:`load_family`.
    """
    return {path.stem: load_family(path) for path in sorted(folder.glob("*.yaml"))}


def confidence_notes(numbers: list[PublishedNumber]) -> list[str]:
    """What the signs of these numbers mean."""
    used = {number.confidence for number in numbers}
    return [f"{sign} {text}" for level, (sign, text) in CONFIDENCE.items() if level in used]
