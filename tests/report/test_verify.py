"""Comparing one machine's cells with published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.common.csv_text import csv_text
from bench.common.errors import UserError
from bench.report import rows as frame
from bench.report.columns import RESULTS
from bench.report.compare import verify
from tests.helpers import fake_records as fake


def published(*a_lasts: int, first_seed: int = 0, **changes: Any) -> list[frame.Row]:
    records = [fake.record("pm", s, n_tasks=2, counts=fake.flat(a)) for s, a in enumerate(a_lasts, first_seed)]
    return [row | changes for row in frame.rows(records)]


@pytest.mark.parametrize(("here", "ok"), [(500, True), (530, True), (470, True), (531, False), (469, False)])
def test_the_same_cell_may_differ_by_three_points(here: int, ok: bool) -> None:
    result = verify.verify(published(here), published(500))
    assert result.ok is ok
    assert result.lines[0].startswith("ok: " if ok else "FAIL: ")
    assert "because other CPUs and thread counts round differently" in result.lines[-1]


def test_prediction_interval_by_hand() -> None:
    """50, 52, 54: mean 52, s 2, t(2) at 99 % = 9.924843; for the mean of 2 new runs the factor is sqrt(1/3 + 1/2)."""
    low, high = verify.prediction_interval([50.0, 52.0, 54.0], 2)
    assert (low, high) == pytest.approx((52 - 18.120201, 52 + 18.120201), abs=1e-5)


@pytest.mark.parametrize(("here", "ok"), [((520, 530), True), ((330, 330), False), ((710, 710), False)])
def test_other_repeats_are_judged_by_their_mean(here: tuple[int, ...], ok: bool) -> None:
    result = verify.verify(published(*here, first_seed=100), published(500, 520, 540))
    assert result.ok is ok
    assert "99% prediction interval of 3 published" in result.lines[0]


def test_what_only_one_side_has_is_said_and_is_no_error() -> None:
    both = published(500)
    result = verify.verify(both + published(1, method="mine"), both + published(999, method="theirs"))
    assert result.ok
    assert any(line.startswith("not published: glyphs T=2 embedded mine") for line in result.lines)
    assert any(line.startswith("not run here: glyphs T=2 embedded theirs") for line in result.lines)


def test_comparing_nothing_is_not_agreement() -> None:
    for new, old in (([], published(500)), (published(500), []), (published(500, first_seed=9), published(500))):
        result = verify.verify(new, old)
        assert not result.ok
        assert "nothing could be compared" in result.lines[-1]


def test_a_cell_that_failed_here_but_not_there_does_not_agree() -> None:
    result = verify.verify(
        published(500) + published(500, first_seed=1, status="failed", a_last=None), published(500, 500)
    )
    assert not result.ok
    assert any(line.startswith("FAIL: ") and line.endswith("failed here") for line in result.lines)
    stale = verify.verify(published(500) + published(900, first_seed=1, status="stale"), published(500, 500))
    assert stale.ok
    assert any(line.startswith("not compared: ") and line.endswith("stale here") for line in stale.lines)


def test_published_files_are_read_back_behind_their_comments(tmp_path: Path) -> None:
    rows, path = frame.rows(fake.grid(2)), tmp_path / "published.csv"
    path.write_text("# machine: 2 cores\n# command: make bench\n" + csv_text(rows, RESULTS))
    read = verify.read_published(path)
    assert [(r["method"], r["n_tasks"], r["run_seed"], r["a_last"]) for r in read] == [
        (r["method"], r["n_tasks"], r["run_seed"], r["a_last"]) for r in rows
    ]
    assert verify.verify(rows, read, tolerance=0.0).ok


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "column 'dataset' is missing"),
        ("# only a comment\n", "column 'dataset' is missing"),
        (fake.CONTRACT.replace(",a_last,", ",") + "\n", "column 'a_last' is missing"),
        (f"# c\n{fake.CONTRACT}\nglyphs,five{',' * 25}\n", "line 3: n_tasks"),
        (f"{fake.CONTRACT}\nglyphs,5\n", "line 2: n_tasks"),
    ],
)
def test_mistakes_in_a_published_file_name_the_place(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        verify.read_published(tmp_path / "p.csv")
    with pytest.raises(UserError, match="not readable"):
        verify.read_published(tmp_path / "absent.csv")
