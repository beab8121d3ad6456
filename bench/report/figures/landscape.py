"""The figure of ``clmerge landscape``: a column a merge, accuracy above and cross-entropy below. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ACROSS = 5  # merges side by side
PANEL = (2.5, 1.9)  # inches
LEAST = 3  # columns that the title and the legend need
OLD, NEW, ALL = "old tasks", "new task", "all tasks seen"  #: whose images
NOTE = "(1 − a) · old served model + a · newly trained model, with the heads of tasks 1 to t"


@dataclass(frozen=True)
class MergePath:
    """What is drawn of the merge after task t.

    Attributes:
        alphas: places on the path, ascending.
        accuracy: percent at each of them, by whose images (``OLD``, ``NEW``, ``ALL``) and whether the task is given.
        loss: mean cross-entropy in nats, alike.
        served: the place of what the rule served; ``served_*`` are its values, task not given.
        closed_form: the place that a closed form chose, where the rule has one.
        off_path: distance of what was served from the path, relative to the path's length.
    """

    t: int
    alphas: Sequence[float]
    accuracy: Mapping[tuple[str, bool], Sequence[float]]
    loss: Mapping[tuple[str, bool], Sequence[float]]
    served: float
    served_accuracy: Mapping[str, float]
    served_loss: Mapping[str, float]
    closed_form: float | None
    off_path: float


def landscape_figure(paths: Sequence[MergePath], title: str) -> Any:
    """The figure, to be drawn and saved inside ``paper_style()``.

    Colour and marker say whose images (old tasks, new task, all), the line whether the task is given (dashed) or not
    (solid). The closed form is drawn where it lies inside the panel, and always told above it.

    Args:
        paths: of one run, at least one.
        title: of the whole figure.
    """
    from matplotlib.figure import Figure

    across = min(ACROSS, len(paths))
    blocks = math.ceil(len(paths) / across)
    size = (PANEL[0] * max(LEAST, across) + 0.4, 2 * PANEL[1] * blocks + 1.0)
    drawn = Figure(figsize=size, layout="constrained")
    panels = drawn.subplots(2 * blocks, across, squeeze=False)
    for i, path in enumerate(paths):
        block, column = divmod(i, across)
        above, below = panels[2 * block][column], panels[2 * block + 1][column]
        if i:  # one scale for all merges, so that they can be compared
            above.sharey(panels[0][0])
            below.sharey(panels[1][0])
        _draw(above, path, path.accuracy, path.served_accuracy)
        _draw(below, path, path.loss, path.served_loss)
        above.set_title(f"t = {path.t}\n{_coefficients(path)}", fontsize=7.5)
        above.tick_params(labelbottom=False)
        below.set_xlabel("a", fontsize=8)
        if not column:
            above.set_ylabel("accuracy (%)", fontsize=8)
            below.set_ylabel("cross-entropy (nats)", fontsize=8)
    for axes in panels[-2:, len(paths) - (blocks - 1) * across :].ravel():
        axes.set_axis_off()
    drawn.suptitle(f"{title}\n{NOTE}", fontsize=8)
    handles: dict[str, Any] = {}
    for axes in panels.ravel():
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    drawn.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    return drawn


def _coefficients(path: MergePath) -> str:
    closed = "" if path.closed_form is None else f"closed form {path.closed_form:.2f}, "
    beside = f" (off path {path.off_path:.2f})" if path.off_path > 0.005 else ""
    return f"1/t {1 / path.t:.2f}, {closed}served {path.served:.2f}{beside}"


def _draw(
    axes: Any, path: MergePath, values: Mapping[tuple[str, bool], Sequence[float]], served: Mapping[str, float]
) -> None:
    import seaborn as sns

    colours = sns.color_palette("colorblind")
    marked = [i for i, a in enumerate(path.alphas) if abs(a * 5 - round(a * 5)) < 1e-9]
    for name, colour, marker in ((OLD, colours[0], "o"), (NEW, colours[1], "s"), (ALL, "black", None)):
        for taskaware, dashes in ((False, "-"), (True, (0, (3, 1.5)))):
            axes.plot(
                path.alphas, values[name, taskaware], color=colour, linestyle=dashes,
                linewidth=0.9 if taskaware else 1.4, label=f"{name}{', task given' if taskaware else ''}",
                marker=marker, markevery=marked, markersize=3, markeredgewidth=0,
            )  # fmt: skip
        axes.plot(
            [path.served], [served[name]], marker="*", markersize=8, color=colour, markeredgecolor="white",
            markeredgewidth=0.5, linestyle="", zorder=5, label="_" if marker else "served",
        )  # fmt: skip
    low, high = path.alphas[0], path.alphas[-1]
    axes.axvline(1 / path.t, color="0.45", linewidth=1.1, linestyle=":", label="1/t")
    if path.closed_form is not None and low <= path.closed_form <= high:
        axes.axvline(path.closed_form, color=colours[4], linewidth=1.1, linestyle="-.", label="closed form")
    axes.set_xlim(low, high)
    axes.set_xticks([0, 0.5, 1])
    axes.tick_params(labelsize=7)
