"""One table in every format: headings that span columns, and a terminal that names what it has no room for."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench.report.section import Document, TableSection, escape_latex, escape_markdown
from bench.report.terminal import fitting

STACKED = TableSection(
    "Stacked",
    [("", "Method"), ("Measured", "A_last"), ("Measured", "F"), ("Published", "A_last")],
    [["a|b", "50.0 ± 1.2 failed 1/3", "-", "33.0ᵗ"], ["x", "not run", "", "1"]],
    ["a note"],
)
WIDE = TableSection(
    "Wide",
    [("Method",), ("Start",), ("First one",), ("Second",), ("Third thing",)],
    [["average@merged", "merged", "50.0 ± 1.0", "60.0 ± 1.0", "70.0 ± 1.0"]],
    labels=2,
    first=("Third thing",),
)


def printed(section: TableSection, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(section.terminal())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_headings_side_by_side_are_one() -> None:
    assert STACKED.head_rows() == [
        [("", 1), ("Measured", 2), ("Published", 1)],
        [("Method", 1), ("A_last", 1), ("F", 1), ("A_last", 1)],
    ]


def test_the_same_cells_in_every_format() -> None:
    document = Document("A & B", [STACKED], ["for all"], "First.\n\nSecond.")
    markdown, latex, html = document.markdown(), document.latex(), document.html("key")
    assert markdown.startswith("# A & B\n\nFirst.\n\nSecond.\n\n## Stacked\n\n| Method ")
    assert r"| a\|b " in markdown
    assert "- a note\n\n- for all" in markdown
    assert r"\multicolumn{2}{c}{Measured}" in latex
    assert r"50.0\,{\tiny$\pm$\,1.2} failed 1/3" in latex
    assert latex.count(r"\begin{table*}") == latex.count(r"\toprule") == latex.count(r"\end{table*}") == 1
    assert {line.count(" & ") for line in latex.splitlines() if line.endswith(r" \\")} == {2, 3}
    assert '<th scope="colgroup" colspan="2">Measured</th>' in html
    assert '<td class="not-run">not run</td>' in html
    assert '<td class="bad">50.0 ± 1.2 failed 1/3</td>' in html
    for text in (markdown, latex, html):
        assert "33.0" in text
        assert "a note" in text


def test_a_section_without_rows_is_a_title_and_its_notes() -> None:
    assert TableSection("Missing", notes=["one", "two"], level=3).markdown() == "### Missing\n\n- one\n- two"


def test_on_a_wide_terminal_every_column_is_shown() -> None:
    text = printed(WIDE, 120)
    assert "Not shown" not in text
    assert all(head in text for (head,) in WIDE.heads)


def test_what_does_not_fit_is_named_and_what_is_asked_for_first_is_kept() -> None:
    text = printed(WIDE, 40)
    assert "Not shown, the terminal is too narrow: First one, Second." in " ".join(text.split())
    assert "70.0 ± 1.0" in text
    assert "60.0" not in text


@pytest.mark.parametrize("width", range(20, 90, 5))
def test_no_text_is_cut_or_broken_at_any_width(width: int) -> None:
    text = printed(WIDE, width)
    for i in fitting(WIDE, width):
        assert WIDE.rows[0][i] in text
    if width >= 30:
        assert max(map(len, text.splitlines())) <= width


@given(st.text())
def test_escaped_text_has_no_bare_sign_of_a_format(text: str) -> None:
    assert not re.search(r"(?<!\\)(?:\\\\)*[|*`<]", escape_markdown(text))
    assert not re.search(r"(?<!\\)[&%#_]", escape_latex(text))
