"""A table under its title and over its notes, and documents of them: every format is written here, once.

A cell is text that is ready to be read; what a machine reads is the CSV of the unrounded lines (``csv_text``). Needs
booktabs and graphicx in LaTeX. Nothing that stands in a title, cell or note is ever read as markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

TEMPLATES = Path(__file__).parent / "templates"
LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "†": r"\textsuperscript{\textdagger}", "‡": r"\textsuperscript{\textdaggerdbl}", "°": r"\textsuperscript{$\circ$}",
    "±": r"$\pm$",
    **{sign: rf"\textsuperscript{{{letter}}}" for sign, letter in zip("ᵗˡⁿᵖᵇᵃ", "tlnpba", strict=True)},
}  # fmt: skip
SHRUNK = r"\ifdim\wd0>\textwidth\resizebox{\textwidth}{!}{\usebox0}\else\usebox0\fi"  #: only what is too wide
BAD = ("failed", "damaged", "outdated")  #: words of a cell that is to be seen


@dataclass(frozen=True)
class TableSection:
    """One table.

    Attributes:
        heads: of every column its headings, from the top; each column has as many. Equal headings side by side are one.
        rows: a text a column; none: a title with what is said under it.
        notes: what must stand under the table.
        about: a paragraph above it.
        level: of the title, 2 or 3.
        labels: how many columns from the left are words.
        first: headings that go first, in this order, where not all fit on a terminal; what does not fit is named.
    """

    title: str
    heads: Sequence[tuple[str, ...]] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()
    about: str = ""
    level: int = 2
    labels: int = 1
    first: Sequence[str] = ()

    def column(self, *heading: str) -> list[str]:
        """The texts under a heading."""
        return [row[self.heads.index(heading)] for row in self.rows]

    def head_rows(self) -> list[list[tuple[str, int]]]:
        """The headings from the top: text and how many columns it spans. They are one where those above them are."""
        levels = len(self.heads[0]) if self.heads else 0
        return [
            [(key[-1], len(list(same))) for key, same in groupby(self.heads, key=lambda head: head[: level + 1])]
            for level in range(levels - 1)
        ] + [[(head[-1], 1) for head in self.heads]][:levels]

    # ---- Markdown ----
    def markdown(self) -> str:
        """A GitHub table; stacked headings are lines of one."""
        parts = [f"{'#' * self.level} {escape_markdown(self.title)}"] if self.title else []
        parts += [escape_markdown(self.about)]
        if self.rows:
            from tabulate import tabulate

            heads = ["<br>".join(escape_markdown(text) for text in head if text) for head in self.heads]
            body = [[escape_markdown(text) for text in row] for row in self.rows]
            align = ["left"] * self.labels + ["right"] * (len(heads) - self.labels)
            parts.append(tabulate(body, heads, tablefmt="pipe", disable_numparse=True, colalign=align))
        return _paragraphs([*parts, markdown_list(self.notes)])

    # ---- LaTeX ----
    def latex(self, caption: str, notes: Sequence[str]) -> str:
        """One booktabs ``table*``, shrunk where it is wider than the text."""
        small = "\n\n".join(escape_latex(note) for note in notes)
        return (
            "\\begin{table*}\n\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"
            f"\\caption{{{escape_latex(caption)}}}\\medskip\n\\sbox0{{{self._tabular()}}}\n{SHRUNK}\n"
            + (f"\\par\\medskip\\raggedright\\scriptsize\n{small}\n" if small else "")
            + "\\end{table*}\n"
        )

    def _tabular(self) -> str:
        head_rows = self.head_rows()
        lines = [f"\\begin{{tabular}}{{{'l' * self.labels}{'r' * (len(self.heads) - self.labels)}}}", "\\toprule"]
        for spans in head_rows[:-1]:
            heads = [
                f"\\multicolumn{{{n}}}{{c}}{{{escape_latex(text)}}}" if text else " & " * (n - 1) for text, n in spans
            ]
            lines.append(" & ".join(heads) + r" \\")
            lines.append(_rules(spans))
        # Stacked words, so that a column is as wide as its numbers.
        heads = [escape_latex(text).replace(" ", r"\\") for text, _ in head_rows[-1]]
        heads = [rf"\shortstack{{{head}}}" if r"\\" in head else head for head in heads]
        lines += [" & ".join(heads) + r" \\", "\\midrule"]
        lines += [" & ".join(map(_latex_cell, row)) + r" \\" for row in self.rows]
        return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])

    # ---- terminal ----
    def terminal(self) -> RenderableType:
        """What ``rich`` prints: the columns that fit, and the names of those that do not."""
        from bench.report.terminal import FittingTable

        return FittingTable(self)


@dataclass(frozen=True)
class Document:
    """Tables under one title, with what holds for all of them."""

    title: str
    sections: Sequence[TableSection]
    notes: Sequence[str] = ()
    about: str = ""  #: paragraphs are parted by an empty line

    def markdown(self) -> str:
        """GitHub Markdown."""
        about = [escape_markdown(text) for text in self.about.strip().split("\n\n")]
        sections = [section.markdown() for section in self.sections]
        return _paragraphs([f"# {escape_markdown(self.title)}", *about, *sections, markdown_list(self.notes)]) + "\n"

    def latex(self) -> str:
        """A float a table; what holds for all stands under the last."""
        tables = [section for section in self.sections if section.rows]
        floats = ["% needs \\usepackage{booktabs,graphicx}\n"]
        for section in tables:
            texts = [self.title, section.title, " ".join(self.about.split())]
            caption = ". ".join(text.strip().rstrip(".") for text in texts if text.strip()) + "."
            floats.append(section.latex(caption, [*section.notes, *(self.notes if section is tables[-1] else ())]))
        return "".join(floats)

    def html(self, key: str) -> str:
        """A fragment without style or script: a section of class ``document`` with tables of class ``stacked``."""
        return rendered("document.html", key=key, document=self)

    def terminal(self) -> Group:
        """What ``rich`` prints, without title and about."""
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = []
        for section in self.sections:
            parts += [section.terminal(), *(Text(note, style="dim") for note in section.notes)]
        return Group(*parts, *(Text(note, style="dim") for note in self.notes))


def rendered(template: str, **values: Any) -> str:
    """One of this package's templates with everything escaped that is put into it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.tests["bad"] = lambda text: any(word in text for word in BAD)
    return environment.get_template(template).render(**values)


def markdown_list(notes: Sequence[str]) -> str:
    """One line a note."""
    return "\n".join(f"- {escape_markdown(note)}" for note in notes)


def escape_markdown(text: str) -> str:
    """Keep what would be table syntax, emphasis or HTML as it is written."""
    return "".join(f"\\{c}" if c in "\\|*`<" else c for c in text.strip().replace("\n", " "))


def escape_latex(text: str) -> str:
    """Plain text for LaTeX, with the few signs that the tables use beyond ASCII."""
    return "".join(f"\\{c}" if c in "&%$#_{}" else LATEX.get(c, c) for c in text)


def _paragraphs(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def _latex_cell(text: str) -> str:
    """A mean's sd in small print."""
    found = re.match(r"(\S+) ± ([\d.]+)(.*)", text)
    if not found:
        return escape_latex(text)
    mean, sd, more = map(escape_latex, found.groups())
    return rf"{mean}\,{{\tiny$\pm$\,{sd}}}{more}"


def _rules(spans: Sequence[tuple[str, int]]) -> str:
    rules, first = [], 1
    for text, n in spans:
        rules += [f"\\cmidrule(lr){{{first}-{first + n - 1}}}"] if text else []
        first += n
    return "".join(rules)
