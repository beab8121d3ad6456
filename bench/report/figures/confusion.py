"""Which task's head answers for which task: after the last task, the task of the predicted class by the true task."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data.scenario import SCENARIOS
from bench.report.figures.drawing import LeftOut, caption, measured, sheet, short_title, write_caption
from bench.report.rows import BLOCK, Row, grouped

if TYPE_CHECKING:
    import numpy as np

Panel = tuple[str, list[Row], "np.ndarray"]  # label, repeats, shares

MOST = 6  # methods a stream, so that a matrix can be read
NUMBERED = 10  # tasks up to which every share is printed


def confusion(rows: Sequence[Row], labels: Sequence[str]) -> Any:
    """A matrix a method and stream: row i, column j is the share of task i's test images that task j's head answers.

    The row "all" below is the share of all images that each head answers; a head that takes more than its task's share
    of the images steals. Mean over repeats. Without a choice of methods, the first of the report.
    """
    every = measured(rows, "test_images")
    headed = [row for row in every if not SCENARIOS[row["scenario"]].shared_head]
    if every and not headed:
        raise LeftOut("all tasks share one head, so none answers for another's")
    whole = [row for row in headed if _whole(row)]
    panels: list[list[Panel]] = []
    dropped: dict[str, None] = {}
    for stream in grouped(whole, BLOCK).values():
        sizes = next((row["task_sizes"] for row in stream if len(row["task_sizes"]) == row["n_tasks"]), None)
        if sizes is None or len(sizes) < 2:
            continue
        methods = grouped(stream, ("label",))
        names = [label for label in labels if (label,) in methods]
        dropped |= dict.fromkeys(names[MOST:])
        of_stream = [(name, methods[(name,)], mean_shares(methods[(name,)], sizes)) for name in names[:MOST]]
        panels.append(of_stream)
    if not panels:
        raise LeftOut("no predictions (pred.npz) of a stream of several tasks lie beside the records")
    left_out = [f" Not shown: {', '.join(dropped)}."] if dropped else []
    left_out += [f" Cells without whole predictions: {len(headed) - len(whole)}."] if len(whole) < len(headed) else []
    return _draw(panels, "".join(left_out))


def _whole(row: Row) -> bool:
    """Whether the predictions are there and are those that the record was written with."""
    file: Path = row["predictions"]
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == row["predictions_sha256"]


def mean_shares(repeats: Sequence[Row], sizes: Sequence[int]) -> np.ndarray:
    """Mean over repeats of :func:`shares` in percent, (T + 1, T)."""
    import numpy as np

    return np.mean([shares(row["predictions"], sizes) for row in repeats], axis=0)


def shares(predictions: Path, sizes: Sequence[int]) -> np.ndarray:
    """(T + 1, T) in percent, from one cell's ``pred.npz``: rows 0..T-1 the true task, row T all images together.

    Args:
        predictions: its ``true`` (N,) and the last row of ``predicted`` (rows, N) are columns: class positions in the
            order of the stream.
        sizes: classes of each task.
    """
    import numpy as np

    with np.load(predictions, allow_pickle=False) as stored:
        true, predicted = stored["true"], stored["predicted"][-1]
    edges = np.cumsum(sizes)
    classified = (true >= 0) & (predicted >= 0)
    counts = np.zeros((len(sizes), len(sizes)))
    np.add.at(counts, tuple(np.searchsorted(edges, which[classified], side="right") for which in (true, predicted)), 1)
    counts = np.vstack([counts, counts.sum(axis=0)])
    return 100 * counts / counts.sum(axis=1, keepdims=True)


def _draw(streams: Sequence[Sequence[Panel]], left_out: str) -> Any:
    columns = min(3, max(map(len, streams)))
    places: list[Panel | None] = []
    for of_stream in streams:  # each begins a line of its own
        places += [*of_stream, *[None] * (-len(of_stream) % columns)]
    figure, grid = sheet(2.75 * columns + 0.6, 2.9 * (len(places) // columns) + 0.6, len(places), columns)
    panels = [panel for of_stream in streams for panel in of_stream]
    most = max(float(matrix.max()) for _, _, matrix in panels)
    for axes, panel in zip(grid, places, strict=True):
        if panel is None:
            axes.set_axis_off()
        else:
            image = _draw_matrix(axes, panel, most)
    figure.colorbar(image, ax=grid, fraction=0.03, pad=0.015, aspect=40, label="share of the row's test images (%)")
    text = (
        "After the last task, mean over {n}. Off the diagonal: images that another task's head answers. Row all: the "
        "share of all images that each head answers; equal shares would be the tasks' shares of the images."
    )
    write_caption(figure, caption(text + left_out, [row for _, repeats, _ in panels for row in repeats]))
    return figure


def _draw_matrix(axes: Any, panel: Panel, most: float) -> Any:
    label, repeats, matrix = panel
    tasks = matrix.shape[1]
    numbered = tasks <= NUMBERED
    below, height = 1.03 * tasks, max(1.0, tasks / 12)  # of the row "all", which stands apart
    lines = {"edgecolors": "white", "linewidth": 0.4} if numbered else {}
    for edges, part in ((range(tasks + 1), matrix[:tasks]), ([below, below + height], matrix[tasks:])):
        image = axes.pcolormesh(range(tasks + 1), edges, part, cmap="cividis", vmin=0, vmax=most, **lines)
    middles = [*(i + 0.5 for i in range(tasks)), below + height / 2]
    if numbered:
        for y, row in zip(middles, matrix, strict=True):
            for j, share in enumerate(row):
                ink = "white" if share < 0.55 * most else "black"
                axes.text(j + 0.5, y, f"{share:.0f}", ha="center", va="center", fontsize=6, color=ink)
    marked = [t for t in range(1, tasks + 1) if numbered or t % 5 == 0 or t == 1]
    axes.set_xticks([middles[t - 1] for t in marked], map(str, marked), fontsize=7)
    axes.set_yticks([*(middles[t - 1] for t in marked), middles[-1]], [*map(str, marked), "all"], fontsize=7)
    axes.set(aspect="equal", ylim=(below + height, 0))
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(f"{label}\n{short_title(repeats[0])}", fontsize=7.5)
    axes.set_xlabel("task of the predicted class", fontsize=7.5)
    axes.set_ylabel("true task", fontsize=7.5)
    return image
