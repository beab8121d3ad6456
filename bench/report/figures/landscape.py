"""The figure of ``clmerge landscape``: a column a merge, accuracy above and cross-entropy below. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.run.landscape import Step

ACROSS = 5  # merges side by side
PANEL = (2.5, 1.9)  # inches
LEAST = 3  # columns that the title and the legend need
NOTE = "(1 − a) · old served model + a · newly trained model, with the heads of tasks 1 to t"


def landscape_figure(steps: Sequence[Step], title: str) -> Any:
    """The figure, to be drawn and saved inside ``paper_style()``.

    Colour and marker say whose images (old tasks, new task, all), the line whether the task is given (dashed) or not
    (solid). The closed form is drawn where it lies inside the panel, and always told above it.

    Args:
        steps: of one run, at least one.
        title: of the whole figure.
    """
    from matplotlib.figure import Figure

    across = min(ACROSS, len(steps))
    blocks = math.ceil(len(steps) / across)
    size = (PANEL[0] * max(LEAST, across) + 0.4, 2 * PANEL[1] * blocks + 1.0)
    drawn = Figure(figsize=size, layout="constrained")
    panels = drawn.subplots(2 * blocks, across, squeeze=False)
    for i, step in enumerate(steps):
        block, column = divmod(i, across)
        above, below = panels[2 * block][column], panels[2 * block + 1][column]
        for axes, what, first in ((above, "accuracy", panels[0][0]), (below, "loss", panels[1][0])):
            if axes is not first:
                axes.sharey(first)  # one scale for all merges, so that they can be compared
            _draw(axes, step, what)
        above.set_title(f"t = {step.t}\n{_told(step)}", fontsize=7.5)
        above.tick_params(labelbottom=False)
        below.set_xlabel("a", fontsize=8)
        if not column:
            above.set_ylabel("accuracy (%)", fontsize=8)
            below.set_ylabel("cross-entropy (nats)", fontsize=8)
    for axes in panels[-2:, len(steps) - (blocks - 1) * across :].ravel():
        axes.set_axis_off()
    drawn.suptitle(f"{title}\n{NOTE}", fontsize=8)
    handles: dict[str, Any] = {}
    for axes in panels.ravel():
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    drawn.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    return drawn


def _told(step: Step) -> str:
    closed = "" if step.closed_form is None else f"closed form {step.closed_form:.2f}, "
    beside = f" (off path {step.off_path:.2f})" if step.off_path > 0.005 else ""
    return f"1/t {1 / step.t:.2f}, {closed}served {step.served.alpha:.2f}{beside}"


def _draw(axes: Any, step: Step, what: str) -> None:
    import seaborn as sns

    colours = sns.color_palette("colorblind")
    groups = (
        ("old tasks", slice(0, step.t - 1), colours[0], "o"),
        ("new task", slice(step.t - 1, None), colours[1], "s"),
        ("all tasks seen", slice(None), "black", None),
    )
    alphas = [point.alpha for point in step.points]
    marked = [i for i, a in enumerate(alphas) if abs(a * 5 - round(a * 5)) < 1e-9]
    for name, tasks, colour, marker in groups:
        for taskaware, dashes in ((False, "-"), (True, (0, (3, 1.5)))):
            values = [getattr(point, what)(tasks, taskaware) for point in step.points]
            label = f"{name}{', task given' if taskaware else ''}"
            axes.plot(
                alphas, values, color=colour, linestyle=dashes, linewidth=0.9 if taskaware else 1.4, label=label,
                marker=marker, markevery=marked, markersize=3, markeredgewidth=0,
            )  # fmt: skip
        served = getattr(step.served, what)(tasks)
        axes.plot(
            [step.served.alpha], [served], marker="*", markersize=8, color=colour, markeredgecolor="white",
            markeredgewidth=0.5, linestyle="", zorder=5, label="_" if marker else "served",
        )  # fmt: skip
    low, high = alphas[0], alphas[-1]
    axes.axvline(1 / step.t, color="0.45", linewidth=1.1, linestyle=":", label="1/t")
    if step.closed_form is not None and low <= step.closed_form <= high:
        axes.axvline(step.closed_form, color=colours[4], linewidth=1.1, linestyle="-.", label="closed form")
    axes.set_xlim(low, high)
    axes.set_xticks([0, 0.5, 1])
    axes.tick_params(labelsize=7)
