"""Tables of papers as Markdown, LaTeX, HTML and CSV, all from one frame."""

from __future__ import annotations

import html as html_escapes
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.common.files import write_atomic
from bench.report.inference import contrasts
from bench.report.papers.cells import Measured
from bench.report.papers.frame import COLUMNS, blocks, lines, notes
from bench.report.rows import csv_text, labelled
from bench.report.tables import escape_latex, escape_markdown

if TYPE_CHECKING:
    import pandas as pd

PAGE_WIDTH = 125  #: characters of a table that LaTeX shrinks little or not
SUPERSCRIPTS = {sign: rf"\textsuperscript{{{letter}}}" for sign, letter in zip("ᵗˡⁿᵖᵇᵃ", "tlnpba", strict=True)}


def write(measured: Measured, out_dir: Path) -> list[Path]:
    """Write ``<table>.{md,tex,html,csv}`` and, where contrasts are declared and can be answered,
    ``<table>_contrasts.{md,csv}``; returns the files.
    """
    key = measured.table.key
    files = {
        f"{key}.md": markdown(measured),
        f"{key}.tex": latex(measured),
        f"{key}.html": html(measured),
        f"{key}.csv": csv(measured),
    }
    declared = contrasts.evaluate(measured.table.families, labelled(measured.rows))
    if declared.results:
        files |= {f"{key}_contrasts.md": declared.markdown(), f"{key}_contrasts.csv": declared.csv()}
    for name, text in files.items():
        write_atomic(out_dir / name, text)
    return [out_dir / name for name in files]


def markdown(measured: Measured) -> str:
    """GitHub Markdown; headings of a column are stacked."""
    from tabulate import tabulate

    table = measured.table
    parts = [f"# {escape_markdown(table.title)}", escape_markdown(table.caption.strip())]
    for title, block in blocks(measured).items():
        heads = ["Method", *("<br>".join(escape_markdown(h) for h in column if h) for column in block.columns)]
        body = [[escape_markdown(text) for text in (str(label), *row)] for label, row in _rows(block)]
        parts += [f"## {escape_markdown(title)}"] if title else []
        align = ["left", *["right"] * len(block.columns)]
        parts.append(tabulate(body, heads, tablefmt="pipe", disable_numparse=True, colalign=align))
    parts.append("\n".join(f"- {escape_markdown(note)}" for note in notes(measured)))
    return "\n\n".join(part for part in parts if part) + "\n"


def html(measured: Measured) -> str:
    """A fragment without style or script: tables of class ``paper``, whose empty cells are ``not-run``, and notes."""
    table = measured.table
    escape = html_escapes.escape
    parts = [f'<section class="paper-table" id="paper-{escape(table.key)}">', f"<h2>{escape(table.title)}</h2>"]
    parts += [f"<p>{escape(table.caption.strip())}</p>"] if table.caption else []
    for title, block in blocks(measured).items():
        parts += [f"<h3>{escape(title)}</h3>"] if title else []
        written = block.to_html(classes="paper", border=0, justify="center")
        parts.append(written.replace("<td>not run</td>", '<td class="not-run">not run</td>'))
    parts += ["<ul>", *(f"<li>{escape(note)}</li>" for note in notes(measured)), "</ul>", "</section>"]
    return "\n".join(parts) + "\n"


def latex(measured: Measured) -> str:
    """One booktabs ``table*``, or one a dataset where the table has blocks of them, with the notes in the last.

    Needs booktabs and graphicx. What is wider than a page is cut into parts, or shrunk where it cannot be cut.
    """
    table = measured.table
    caption = ". ".join(text.strip().rstrip(".") for text in (table.title, table.caption) if text.strip())
    begin = "\\begin{table*}\n\\centering\\footnotesize\\setlength{\\tabcolsep}{4pt}\n"
    texts = ["% needs \\usepackage{booktabs,graphicx}", f"{begin}\\caption{{{_latex(caption)}.}}\\medskip"]
    for i, (title, block) in enumerate(blocks(measured).items()):
        if i and table.per_dataset:
            texts += ["\\end{table*}", f"{begin}\\caption{{{_latex(f'{table.title}: {title}')}.}}\\medskip"]
        else:
            texts += [f"\\par\\smallskip\\textbf{{{_latex(title)}}}\\par\\smallskip"] if title else []
        for part in _parts(block, [tuple(column) for column in block.columns]):
            shown = block[part]
            texts += [
                f"\\sbox0{{{_tabular(shown[(shown != '').any(axis=1)])}}}",
                "\\ifdim\\wd0>\\textwidth\\resizebox{\\textwidth}{!}{\\usebox0}\\else\\usebox0\\fi\\par\\medskip",
            ]
    said = "\n\n".join(_latex(note) for note in notes(measured))
    return "\n".join([*texts, f"\\par\\medskip\\raggedright\\scriptsize\n{said}\n\\end{{table*}}"]) + "\n"


def _parts(block: pd.DataFrame, columns: list[tuple[str, ...]], level: int = 0) -> list[list[tuple[str, ...]]]:
    """The columns, cut where a heading ends into parts that can be read at the width of a page."""
    stub = max(len(str(label)) for label in block.index)

    def width(part: list[tuple[str, ...]]) -> int:
        return stub + sum(2 + max(len(column[-1]), *block[column].str.len()) for column in part)

    if width(columns) <= PAGE_WIDTH or level == len(columns[0]):
        return [columns]
    parts: list[list[tuple[str, ...]]] = []
    for _, same in groupby(columns, key=lambda column: column[: level + 1]):
        for group in _parts(block, list(same), level + 1):
            if parts and level and width(parts[-1] + group) <= PAGE_WIDTH:
                parts[-1] += group
            else:
                parts.append(group)
    return parts


def _tabular(block: pd.DataFrame) -> str:
    columns = list(block.columns)
    measured = sum(column[0].startswith("Measured") for column in columns)
    gap = "@{\\hskip 2em}" if 0 < measured < len(columns) else ""
    text = [f"\\begin{{tabular}}{{l{'c' * measured}{gap}{'c' * (len(columns) - measured)}}}", "\\toprule"]
    for level in range(len(columns[0])):
        # Equal headings side by side are one, where those above them are one too.
        spans = [(key[-1], len(list(same))) for key, same in groupby(columns, key=lambda c: c[: level + 1])]
        heads = [f"\\multicolumn{{{n}}}{{c}}{{{_latex(name)}}}" for name, n in spans]
        last = level == len(columns[0]) - 1
        text.append(" & ".join(["Method" if last else "", *heads]) + r" \\")
        text.append("\\midrule" if last else _rules(spans))
    text += [" & ".join(_latex(cell) for cell in (str(label), *row)) + r" \\" for label, row in _rows(block)]
    return "\n".join([*text, "\\bottomrule", "\\end{tabular}"])


def _rules(spans: list[tuple[str, int]]) -> str:
    rules, first = [], 2
    for text, n in spans:
        rules += [f"\\cmidrule(lr){{{first}-{first + n - 1}}}"] if text else []
        first += n
    return "".join(rules)


def csv(measured: Measured) -> str:
    """The tidy frame, unrounded: a line a value, ``kind`` says measured or published."""
    return csv_text(lines(measured), COLUMNS)


def _rows(block: pd.DataFrame) -> Iterable[tuple[Any, tuple[str, ...]]]:
    return zip(block.index, block.itertuples(index=False, name=None), strict=True)


def _latex(text: str) -> str:
    escaped = escape_latex(text)
    return "".join(SUPERSCRIPTS.get(c, c) for c in escaped)
