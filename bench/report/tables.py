"""Tables: per stream one row a method, mean ± sample standard deviation over the repeats, in four formats.

Forgetting is never ranked or set in bold: a backbone that learns nothing forgets least. Learning accuracy and the
frozen backbone's forgetting stand beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.report.rows import (
    BLOCK,
    MEASURED,
    SPLITS,
    TROUBLES,
    Row,
    csv_text,
    footnotes,
    grouped,
    matches,
    stream_title,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

HEADERS = {
    "a_last": "A_last",
    "avg_acc": "Average incremental accuracy",
    "forgetting": "Forgetting",
    "forgetting_taskaware": "Forgetting, task-aware",
    "a_last_taskaware": "A_last, task-aware",
    "learn_acc": "Learning accuracy",
    "merge_drop": "Merge drop",
    "drift": "Later drift",
    "bwt": "Backward transfer",
    "a_last_taskmean": "A_last, task mean",
    "avg_acc_taskmean": "Average incremental accuracy, task mean",
    "forgetting_taskmean": "Forgetting, task mean",
    "forgetting_max_incl": "Forgetting, maximum over all t",
    "forgetting_first": "Forgetting from first",
    "forgetting_coda": "Forgetting, CODA-Prompt",
    "forgetting_libcontinual": "Forgetting, LibContinual",
    "bwt_all": "Backward transfer over T",
    "bwt_libcontinual": "Backward transfer, LibContinual",
    "seconds": "Time (s)",
    "peak_mb": "Peak memory (MB)",
    "carried_bytes": "Carried",
    "carried_image_bytes": "of it images",
}
BYTES = ("carried_bytes", "carried_image_bytes")
KEEPS_IMAGES = "Keeps images of past tasks"
DEFAULT_COLUMNS = ("a_last", "avg_acc", "learn_acc", "forgetting", "forgetting_taskaware", "seconds", "carried_bytes")
TERMINAL_COLUMNS = ("a_last", "avg_acc", "learn_acc", "forgetting", "seconds", "carried_bytes")  # 100 characters wide
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "†": r"\textsuperscript{\textdagger}",
    "°": r"\textsuperscript{$\circ$}",
    "±": r"$\pm$",
}


@dataclass(frozen=True)
class Block:
    """One stream's table: ``lines`` hold a method's identity, ``n``, status counts and (mean, sd) under each metric.

    ``notes`` are on this stream alone; :func:`legend` is what every table needs. Methods that keep images of past tasks
    have a block of their own, whose table shows the bytes of them.
    """

    title: str
    lines: list[dict[str, Any]]
    notes: list[str]
    keeps_images: bool = False

    def all_notes(self) -> list[str]:
        """The notes, the legend and each label's full variant: a printed table must stand alone."""
        spelled = "; ".join(f"{line['label']} = {line['variant']}" for line in self.lines)
        return [*self.notes, *legend(self.lines), f"Spelled out: {spelled}."]


def blocks(rows: Iterable[Row], order: Sequence[str] = (), about: str = "") -> list[Block]:
    """Summaries of :func:`labelled` rows, one a (dataset, T, protocol, split), and one more where methods keep images
    of past tasks; no row is hidden.

    Args:
        rows: cells whose coordinates are known.
        order: selectors (see :func:`matches`) in the order of the table. What none of them means follows, best A_last
            first.
        about: which methods these are, for the titles.
    """
    return [block for group in grouped(rows, BLOCK).values() for block in _blocks(group, order, about)]


def _blocks(rows: list[Row], order: Sequence[str], about: str) -> list[Block]:
    def place(line: dict[str, Any]) -> tuple[int, float]:
        rank = next((i for i, selector in enumerate(order) if matches(selector, line)), len(order))
        mean = line["a_last"][0]
        return rank, float("inf") if mean is None else -mean

    lines = sorted((_line(group) for group in grouped(rows, ("method", "variant")).values()), key=place)
    notes = [SPLITS[rows[0]["eval_split"]]] if rows[0]["eval_split"] in SPLITS else []
    notes += _budget(rows)
    frozen = [line for line in lines if line["frozen"] and line["forgetting"][0] is not None]
    for line in frozen:
        notes.append(
            f"Frozen backbone ({line['label']}): forgetting {number(line['forgetting'])} at learning accuracy "
            f"{number(line['learn_acc'])}. Its weights never change: it forgets because the label space grows."
        )
    if not frozen:
        notes.append("No frozen backbone was run here, so forgetting has nothing to be read against.")
    title = ". ".join(text for text in (stream_title(rows[0]), about) if text)
    found = []
    for keeps, head in ((False, title), (True, f"{title}. {KEEPS_IMAGES}")):
        mine = [line for line in lines if line["keeps_images"] == keeps]
        if mine:
            found.append(Block(head, mine, notes, keeps))
    return found


def _budget(rows: list[Row]) -> list[str]:
    """What tuning was spent on each method, where the protocol was tuned."""
    spent = {row["label"]: row["tuning"] for row in rows if row["tuning"]}
    tuned = next((tuning for tuning in spent.values() if tuning["trials"]), None)
    if tuned is None:
        return []
    streams = f"{', '.join(tuned['datasets'])}, T = {', '.join(map(str, tuned['tasks']))}"
    none = [label for label, tuning in spent.items() if not tuning["trials"]]
    return [
        f"{tuned['trials']} tuning trials a method on the validation split of {streams}, repeats {tuned['repeats']}"
        + (f"; none for {', '.join(none)}." if none else ".")
    ]


def legend(lines: Iterable[dict[str, Any]]) -> list[str]:
    """How to read any of the tables, and what the marks in these lines mean."""
    return [
        "Mean ± sample standard deviation over n repeats; accuracies in percent, differences in points. Time: "
        "training alone plus merging. Carried: what crosses a task boundary beyond pretrained and served weights and "
        "heads.",
        *footnotes(lines),
    ]


def _line(rows: list[Row]) -> dict[str, Any]:
    measured = [row for row in rows if row["status"] in MEASURED and row["a_last"] is not None]
    names = (*BLOCK, "method", "variant", "start", "label", "title", "method_status", "frozen")
    line = {name: rows[0][name] for name in names}
    line |= {"n": len(measured), "cells": len(rows)}
    line |= {status: sum(row["status"] == status for row in rows) for status in TROUBLES}
    line["keeps_images"] = any(row["keeps_images"] for row in measured or rows)
    return line | {name: _mean_sd([row.get(name) for row in measured]) for name in HEADERS}


def _mean_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample sd; undefined where any repeat's value is, and no sd of a single repeat."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and its 95 % t interval over independent repeats (at least one); no interval of a single repeat."""
    from scipy.stats import t

    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return mean, None, None
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return mean, mean - half, mean + half


def number(value: tuple[float | None, float | None]) -> str:
    """Mean ± sd to one decimal; a hyphen where undefined."""
    mean, sd = value
    if mean is None:
        return "-"
    # Adding 0.0 turns the -0.0 that rounding leaves into 0.0.
    text = f"{round(mean, 1) + 0.0:.1f}"
    return text if sd is None else f"{text} ± {sd:.1f}"


def _cell(name: str, value: tuple[float | None, float | None]) -> str:
    if name not in BYTES or value[0] is None:
        return number(value)
    from rich.filesize import decimal

    return decimal(round(value[0]))


def _troubles(line: dict[str, Any]) -> str:
    found = (f"{status} {line[status]}/{line['cells']}" for status in TROUBLES if line[status])
    return ", ".join(found)


def printed(block: Block, columns: Sequence[str]) -> pd.DataFrame:
    """The one frame of strings behind Markdown, LaTeX and the terminal."""
    import pandas as pd

    if block.keeps_images:
        columns = list(dict.fromkeys([*columns, *BYTES]))
    data = [
        {"Method": line["label"], "Start": line["start"], "n": str(line["n"])}
        | {HEADERS[name]: _cell(name, line[name]) for name in columns}
        | {"Cells": _troubles(line)}
        for line in block.lines
    ]
    frame = pd.DataFrame(data)
    return frame if frame["Cells"].any() else frame.drop(columns="Cells")


def markdown(blocks: Sequence[Block], columns: Sequence[str]) -> str:
    """GitHub Markdown: a heading, a table and its notes per stream."""
    parts = []
    for block in blocks:
        parts += [f"## {escape_markdown(block.title)}", markdown_table(printed(block, columns))]
        parts.append("\n".join(f"- {escape_markdown(note)}" for note in block.all_notes()))
    return "\n\n".join(parts) + "\n"


def latex(blocks: Sequence[Block], columns: Sequence[str], caption: str = "") -> str:
    """One booktabs ``table*`` a stream, shrunk where it is wider than the text. Needs ``booktabs`` and ``graphicx``."""
    return "% needs \\usepackage{booktabs,graphicx}\n" + "\n".join(_latex(block, columns, caption) for block in blocks)


def _latex(block: Block, columns: Sequence[str], caption: str) -> str:
    frame = printed(block, columns).map(_latex_cell)
    frame.columns = [r"\shortstack{" + r"\\".join(escape_latex(name).split(" ")) + "}" for name in frame.columns]
    tabular = frame.to_latex(index=False, escape=False, column_format="ll" + "r" * (len(frame.columns) - 2))
    head = escape_latex(". ".join(text for text in (block.title, caption.strip().rstrip(".")) if text) + ".")
    notes = "\n\n".join(escape_latex(note) for note in block.all_notes())
    return (
        "\\begin{table*}\n\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"
        f"\\caption{{{head}}}\\medskip\n\\sbox0{{{tabular.strip()}}}\n"
        "\\ifdim\\wd0>\\textwidth\\resizebox{\\textwidth}{!}{\\usebox0}\\else\\usebox0\\fi\n"
        f"\\par\\medskip\\raggedright\\scriptsize\n{notes}\n\\end{{table*}}\n"
    )


def _latex_cell(text: str) -> str:
    mean, plus_minus, sd = text.partition(" ± ")
    return rf"{mean}\,{{\tiny$\pm$\,{sd}}}" if plus_minus else escape_latex(text)


def table_csv(blocks: Sequence[Block]) -> str:
    """All metrics of all streams, unrounded: ``<metric>_mean`` and ``<metric>_sd``; ``footnote`` explains the mark."""
    identity = (*BLOCK, "label", "method", "variant", "start", "title", "method_status")
    counted = ("n", "cells", *TROUBLES, "keeps_images")
    values = [f"{name}_{part}" for name in HEADERS for part in ("mean", "sd")]
    rows = []
    for line in (line for block in blocks for line in block.lines):
        row = {name: line[name] for name in (*identity, *counted)} | {"footnote": " ".join(footnotes([line]))}
        for name in HEADERS:
            row[f"{name}_mean"], row[f"{name}_sd"] = line[name]
        rows.append(row)
    return csv_text(rows, (*identity, *counted, *values, "footnote"))


def terminal(blocks: Sequence[Block], columns: Sequence[str]) -> Group:
    """What ``rich`` prints: a table a stream with its notes, of the columns those in :data:`TERMINAL_COLUMNS`."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for block in blocks:
        shown = [name for name in columns if name in TERMINAL_COLUMNS]
        parts.append(terminal_table(printed(block, shown), block.title))
        parts += [Text(note, style="dim") for note in block.notes]
        parts.append(Text())
    lines = [line for block in blocks for line in block.lines]
    return Group(*parts, *(Text(note, style="dim") for note in legend(lines)))


def markdown_table(frame: pd.DataFrame) -> str:
    """A frame of strings as a GitHub table; the first column to the left, the others to the right."""
    align = ["left"] + ["right"] * (len(frame.columns) - 1)
    return frame.map(escape_markdown).to_markdown(index=False, disable_numparse=True, colalign=align)


def terminal_table(frame: pd.DataFrame, title: str) -> Any:
    """A frame of strings as a ``rich`` table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(frame.columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=not i)
    for values in frame.itertuples(index=False):
        # Text, because a variant such as [a=1] would be read as markup.
        table.add_row(*(Text(value, style="red" if "failed" in value else "") for value in values))
    return table


def escape_markdown(text: str) -> str:
    """Keep what would be table syntax, emphasis or HTML as it is written."""
    return "".join(f"\\{c}" if c in "\\|*`<" else c for c in text.replace("\n", " "))


def escape_latex(text: str) -> str:
    """Plain text for LaTeX, with the few signs that the tables use beyond ASCII."""
    return "".join(f"\\{c}" if c in "&%$#_{}" else LATEX.get(c, c) for c in text)
