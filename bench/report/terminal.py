"""A table for ``rich`` that never cuts a column off unsaid: what does not fit is named under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from bench.report.section import TableSection

PADDING = 1  # to the right of a column
EDGES = 2  # of the box


@dataclass(frozen=True)
class FittingTable:
    """What a section looks like in as many characters as the terminal has."""

    section: TableSection

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, and a line on what it does not show."""
        from rich.text import Text

        shown = fitting(self.section, options.max_width)
        yield self._table(shown)
        hidden = [" ".join(filter(None, head)) for i, head in enumerate(self.section.heads) if i not in shown]
        if hidden:
            yield Text(f"Not shown, the terminal is too narrow: {', '.join(hidden)}.", style="dim")

    def _table(self, shown: Sequence[int]) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(self.section.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD,
            padding=(0, PADDING, 0, 0),
        )  # fmt: skip
        for i in shown:
            label = i < self.section.labels
            heading = Text(" ".join(filter(None, self.section.heads[i])))
            table.add_column(
                heading, justify="left" if label else "right", no_wrap=i == 0, min_width=_width(self.section, i)
            )
        for row in self.section.rows:
            # Text, because a variant such as [a=1] would be read as markup.
            table.add_row(*(Text(row[i], style="red" if "failed" in row[i] else "") for i in shown))
        return table


def fitting(section: TableSection, width: int) -> list[int]:
    """The columns that ``width`` characters have room for: the labels, then ``section.first``, then the others."""
    heads = [head[-1] for head in section.heads]
    first = {heading: rank for rank, heading in enumerate(section.first)}

    def rank(column: int) -> int:
        return -1 if column < section.labels else first.get(heads[column], len(first))

    shown: list[int] = []
    room = width - EDGES
    for column in sorted(range(len(heads)), key=rank):
        needed = _width(section, column) + PADDING + bool(shown)
        if needed <= room or not shown:
            shown.append(column)
            room -= needed
    return sorted(shown)


def _width(section: TableSection, column: int) -> int:
    """Characters that a column needs: its texts whole, its heading broken between words."""
    from rich.cells import cell_len

    words = [word for text in section.heads[column] for word in text.split()]
    return max(map(cell_len, [*words, *(row[column] for row in section.rows)]), default=0)
