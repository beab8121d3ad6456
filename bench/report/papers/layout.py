"""``reports/paper/<key>.yaml``: the rows, columns and metrics of a paper's table, and what is published beside it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator

from bench.common.paths import REPORTS
from bench.config.files import read_yaml
from bench.config.schema import Section, SuiteConfig
from bench.method import Start
from bench.plan.grid import parse_seeds
from bench.report.columns import check_columns
from bench.report.inference import contrasts

PAPER_TABLES = REPORTS / "paper"


class StreamColumns(Section):
    """Streams: a dataset at some task counts, under every combination of trainers and starts where these are given."""

    dataset: str
    title: str = ""  #: over the columns; empty: the dataset's
    tasks: list[int] = Field(min_length=1)
    protocol: str | None = None  #: None: the table's
    trainers: list[str] = []  #: empty: each method's own
    starts: list[Start] = []  #: empty: each method's own


class TableRow(Section):
    """A row that needs more than a spelling."""

    method: str
    title: str = ""  #: empty: the method's
    published: list[str] = []  #: names in the families beside; empty: those that are this method


class PaperTable(Section):
    """``reports/paper/<key>.yaml``."""

    key: str
    title: str
    caption: str = ""
    protocol: str | None = None  #: None: each dataset's own
    columns: list[StreamColumns] = Field(min_length=1)
    methods: list[str | TableRow] = Field(min_length=1)
    metrics: list[str] = ["a_last"]
    repeats: str  #: as ``--seeds``
    class_order_seed: int | None = Field(default=None, ge=0)  #: pins the class order; repeats then vary the run seed
    per_dataset: bool = False  #: a block a dataset in place of one wide table
    beside: list[str] = []  #: published families, in columns of their own
    below: list[str] = []  #: published families, in blocks of their own with all of their methods
    notes: list[str] = []
    families: list[contrasts.ContrastFamily] = []  #: declared contrasts

    @field_validator("metrics")
    @classmethod
    def _metrics(cls, metrics: list[str]) -> list[str]:
        check_columns(metrics, "metric")
        return metrics

    def suites(self) -> list[SuiteConfig]:
        """The grids whose cells these are, as ``clmerge run`` takes them."""
        return [
            SuiteConfig(
                key=self.key, protocol=columns.protocol or self.protocol or [], datasets=[columns.dataset],
                tasks=columns.tasks, methods=[line.method for line in self.lines], start=columns.starts,
                trainers=columns.trainers, seeds=self.repeats,
            )
            for columns in self.columns
        ]  # fmt: skip

    @property
    def lines(self) -> list[TableRow]:
        """The rows."""
        return [TableRow(method=line) if isinstance(line, str) else line for line in self.methods]


def load_table(path: Path) -> PaperTable:
    """One table's file.

    Raises:
        UserError: naming the file and the key.
    """
    table = read_yaml(path, PaperTable, key=path.stem)
    parse_seeds(table.repeats, f"{path}: repeats")
    return table
