"""Contact sheets: what a person looks at before trusting a dataset. One a task, and one of all classes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.common.files import write_atomic
from bench.data.dataset import Dataset
from bench.data.scenario import Cut

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

TRAIN, TEST, ROWS = 10, 4, 20  # images a class of either split, and classes on a task's sheet
SMALL, LARGE = 64, 112  # side of a cell in pixels: smaller images are enlarged, larger ones reduced
GAP, APART, MARGIN = 4, 24, 28
NAMES = 260  # widest column of class names
CAPTION = 150  # widest column of the overview, where names need it
INK, PALE, LINE, PAPER = "#1c1c1c", "#6f6f6f", "#d5d5d5", "#ffffff"


def write_sheets(dataset: Dataset, cuts: Sequence[Cut], note: str, out: Path) -> list[Path]:
    """Write the overview and one sheet a task.

    Args:
        dataset: its images are shown as they are stored.
        cuts: the tasks.
        note: what the order is, for the titles and file names, e.g. ``class order seed 0``.
        out: the folder.

    Returns:
        The PNG files: ``<key>-overview.png``, then ``<key>-<note>-task1-of-5.png`` and so on.
    """
    files = [out / f"{dataset.key}-overview.png"]
    write_atomic(files[0], _png(overview(dataset)))
    slug, n_tasks = note.replace(" ", "-"), len(cuts)
    for cut in cuts:
        files.append(out / f"{dataset.key}-{slug}-task{cut.t:0{len(str(n_tasks))}d}-of-{n_tasks}.png")
        title = f"{dataset.key}: task {cut.t} of {n_tasks}"
        if cut.domain is not None:
            title += f", {dataset.domain_names[cut.domain]}"
        write_atomic(files[-1], _png(task_sheet(dataset, cut, title, note)))
    return files


def task_sheet(dataset: Dataset, cut: Cut, title: str, note: str) -> Image:
    """A row a class: its name, training images, and test images apart, spread evenly over the class's in the task."""
    classes, shown, side = cut.classes, cut.classes[:ROWS], _side(dataset)
    width = min(NAMES, max(_width(dataset.class_names[c], _font(14)) for c in shown))
    step, left, top = side + GAP, MARGIN + width + 16, MARGIN + 92
    right = left + TRAIN * step - GAP + APART
    few = (
        f"the first {len(shown)} of {len(classes)} classes" if len(shown) < len(classes) else f"{len(classes)} classes"
    )
    canvas, draw = _canvas(right + TEST * step - GAP + MARGIN, top + len(shown) * step - GAP + MARGIN)
    _header(draw, title, f"{few}, {note}")
    for x, split in ((left, "training images"), (right, "test images")):
        draw.text((x, top - 10), split, fill=PALE, font=_font(13), anchor="ls")
    for row, c in enumerate(shown):
        y = top + row * step
        name = _fitted(dataset.class_names[c], width, _font(14))
        draw.text((left - 16, y + side // 2), name, fill=INK, font=_font(14), anchor="rm")
        for x, images, labels, domains, count in (
            (left, dataset.train_images, dataset.train_labels, dataset.train_domains, TRAIN),
            (right, dataset.test_images, dataset.test_labels, dataset.test_domains, TEST),
        ):
            own = labels == c if cut.domain is None else (labels == c) & (domains == cut.domain)
            for column, i in enumerate(_spread(np.flatnonzero(own), count)):
                _paste(canvas, draw, images[i], x + column * step, y, side)
    return canvas


def overview(dataset: Dataset) -> Image:
    """One training image of every class, in the order of their labels."""
    side, many = _side(dataset), len(dataset.class_names)
    longest = max(_width(name, _font(12)) for name in dataset.class_names)
    pitch, height = max(side, min(longest, CAPTION)) + 12, side + 32
    columns = max(min(5, many), min(20, math.ceil(math.sqrt(many * height / pitch * 1.4))))
    top, rows = MARGIN + 66, math.ceil(many / columns)
    canvas, draw = _canvas(max(2 * MARGIN + columns * pitch - 12, 520), top + rows * height - 12 + MARGIN)
    counts = f"{len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images"
    _header(draw, f"{dataset.key}: all classes", f"{many} classes, {counts}")
    for c, name in enumerate(dataset.class_names):
        x, y = MARGIN + c % columns * pitch, top + c // columns * height
        own = np.flatnonzero(dataset.train_labels == c)
        _paste(canvas, draw, dataset.train_images[own[len(own) // 2]], x, y, side)
        draw.text((x, y + side + 15), _fitted(name, pitch - 12, _font(12)), fill=INK, font=_font(12), anchor="ls")
    return canvas


def _side(dataset: Dataset) -> int:
    """Side of a cell: whole multiples of small images, so that every pixel stays one."""
    stored = dataset.train_images.shape[-1]
    return stored * math.ceil(SMALL / stored) if stored < SMALL else min(stored, LARGE)


def _spread(own: np.ndarray, count: int) -> list[int]:
    """Indices spread evenly over a class's own: in file order, neighbours often look alike."""
    places = np.linspace(0, len(own) - 1, min(count, len(own))).round().astype(int)
    return [int(own[place]) for place in places]


def _paste(canvas: Image, draw: ImageDraw, image: np.ndarray, x: int, y: int, side: int) -> None:
    from PIL import Image as Pictures

    # One layout for grey and colour; the line tells white images from the paper.
    picture = Pictures.fromarray(np.ascontiguousarray(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)))
    kind = Pictures.Resampling.NEAREST if image.shape[-1] < side else Pictures.Resampling.LANCZOS
    canvas.paste(picture.resize((side, side), kind), (x, y))
    draw.rectangle((x - 1, y - 1, x + side, y + side), outline=LINE)


def _canvas(width: int, height: int) -> tuple[Image, ImageDraw]:
    from PIL import Image as Pictures
    from PIL import ImageDraw as Drawings

    canvas = Pictures.new("RGB", (width, height), PAPER)
    return canvas, Drawings.Draw(canvas)


def _header(draw: ImageDraw, title: str, below: str) -> None:
    draw.text((MARGIN, MARGIN + 18), title, fill=INK, font=_font(20, "-Bold"), anchor="ls")
    draw.text((MARGIN, MARGIN + 42), below, fill=PALE, font=_font(14), anchor="ls")


def _fitted(text: str, width: int, font: FreeTypeFont) -> str:
    """The text with its middle left out where it is too wide: names of one dataset differ most at their ends."""
    kept = len(text)
    fitted = text
    while kept > 1 and _width(fitted, font) > width:
        kept -= 1
        fitted = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return fitted


def _width(text: str, font: FreeTypeFont) -> int:
    return math.ceil(font.getlength(text))


@cache
def _font(size: int, style: str = "") -> FreeTypeFont:
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", f"DejaVuSans{style}.ttf")), size)


def _png(sheet: Image) -> bytes:
    out = io.BytesIO()
    sheet.save(out, "PNG", optimize=True)
    return out.getvalue()
