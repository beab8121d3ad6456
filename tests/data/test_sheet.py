"""Contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data import sheet
from bench.data.dataset import Dataset
from bench.data.scenario import listed


def made(side: int, classes: int, train: int, test: int, channels: int = 3) -> Dataset:
    """A dataset whose images of class c have the value c, those of test 100 more."""
    images = [
        np.broadcast_to((base + np.arange(classes)).repeat(n).astype(np.uint8)[:, None, None, None],
                        (classes * n, channels, side, side))
        for base, n in ((0, train), (100, test))
    ]  # fmt: skip
    labels = [np.arange(classes).repeat(n) for n in (train, test)]
    names = tuple(f"a class with quite a long name, of all {c}" for c in range(classes))
    return Dataset("made", images[0], labels[0], images[1], labels[1], names, "")


@pytest.mark.parametrize(("side", "cell"), [(8, 64), (28, 84), (64, 64), (105, 105), (224, 112)])
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_and_cells_of_a_sheet(side: int, cell: int, channels: int) -> None:
    dataset = made(side, 3, 12, 2, channels)
    drawn = np.asarray(sheet.task_sheet(dataset, listed([[2, 0]])[0], "title", "note"))
    height, width, _ = drawn.shape
    assert height == sheet.MARGIN + 92 + 2 * (cell + sheet.GAP) - sheet.GAP + sheet.MARGIN
    # Whole cells of the right class at the expected places: ten of training, then a gap, then the two there are of test.
    left = width - sheet.MARGIN - 14 * (cell + sheet.GAP) + 2 * sheet.GAP - sheet.APART
    right = left + 10 * (cell + sheet.GAP) - sheet.GAP + sheet.APART
    for row, c in enumerate((2, 0)):
        y = sheet.MARGIN + 92 + row * (cell + sheet.GAP)
        for x, value in (
            (left, c),
            (left + 9 * (cell + sheet.GAP), c),
            (right, c + 100),
            (right + cell + sheet.GAP, c + 100),
        ):
            assert (drawn[y : y + cell, x : x + cell] == value).all()
        assert (drawn[y : y + cell, right + 2 * (cell + sheet.GAP) :] == 255).all()  # no third test image
        assert (drawn[y : y + cell, left - 12 : left - 2] == 255).all()  # names end before the images


def test_sheets_of_many_classes_are_cut_and_say_so() -> None:
    dataset = made(16, 45, 1, 1)
    drawn = sheet.task_sheet(dataset, listed([range(45)])[0], "title", "note")
    assert drawn.height == sheet.MARGIN * 2 + 92 + sheet.ROWS * 68 - sheet.GAP
    overview = np.asarray(sheet.overview(dataset))
    grey = np.bincount(overview[..., 0].ravel(), minlength=45)
    assert (grey[:45] >= 64 * 64).all()  # every class is on it


def test_order_and_tasks_of_the_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[tuple[int, ...], str]] = []
    blank = Image.new("RGB", (1, 1))
    monkeypatch.setattr(sheet, "task_sheet", lambda _, cut, title, note: drawn.append((cut.classes, title)) or blank)
    files = sheet.write_sheets(made(8, 5, 1, 1), listed([[4, 2], [0, 1, 3]]), "class order seed 1", tmp_path)
    assert drawn == [((4, 2), "made: task 1 of 2"), ((0, 1, 3), "made: task 2 of 2")]
    assert all(file.stat().st_size for file in files)
