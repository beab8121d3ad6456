"""Tables of papers as Markdown, LaTeX, HTML and CSV, all from one frame."""

from __future__ import annotations

from pathlib import Path

from bench.common.csv_text import csv_text
from bench.common.files import write_atomic
from bench.report.inference import contrasts
from bench.report.papers.cells import MeasuredTable
from bench.report.papers.frame import COLUMNS, lines, notes, sections
from bench.report.rows import labelled
from bench.report.section import Document


def write(measured: MeasuredTable, out_dir: Path) -> list[Path]:
    """Write ``<table>.{md,tex,html,csv}`` and, where contrasts are declared and can be answered,
    ``<table>_contrasts.{md,csv}``; returns the files.
    """
    key, printed = measured.table.key, document(measured)
    files = {
        f"{key}.md": printed.markdown(),
        f"{key}.tex": printed.latex(),
        f"{key}.html": printed.html(key),
        f"{key}.csv": csv(measured),
    }
    declared = contrasts.evaluate(measured.table.families, labelled(measured.rows))
    if declared.results:
        files |= {f"{key}_contrasts.md": declared.document().markdown(), f"{key}_contrasts.csv": declared.csv()}
    for name, text in files.items():
        write_atomic(out_dir / name, text)
    return [out_dir / name for name in files]


def document(measured: MeasuredTable) -> Document:
    """What people read."""
    return Document(measured.table.title, sections(measured), notes(measured), measured.table.caption.strip())


def csv(measured: MeasuredTable) -> str:
    """The tidy frame, unrounded: a line a value, ``kind`` says measured or published."""
    return csv_text(lines(measured), COLUMNS)
