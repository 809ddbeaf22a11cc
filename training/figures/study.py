"""Draws the results of a study of ablate.py."""

from matplotlib.figure import Figure
from rednet.training.figures.style import SLIDE, look


@look
def draw_study(axes: dict[str, list[dict]]) -> Figure:
    """Accuracy and operations over each axis.

    Args:
        axes: for each axis, rows with `value`, `is_base`, `macs`, `top_1_mean` and `top_1_error`.
    """
    figure = Figure(figsize=SLIDE)
    panels = figure.subplots(
        2, len(axes), sharey="row", squeeze=False, width_ratios=[len(rows) + 1 for rows in axes.values()]
    )
    for (axis, rows), (accuracy, operations) in zip(axes.items(), panels.T):
        values = [row["value"] for row in rows]
        fills = ["black" if row["is_base"] else "white" for row in rows]
        means = [100 * row["top_1_mean"] for row in rows]
        spreads = [100 * (row["top_1_error"] or 0) for row in rows]
        accuracy.errorbar(values, means, spreads, fmt="none", ecolor="black", capsize=6)
        accuracy.scatter(values, means, 90, fills, edgecolors="black", linewidths=2, zorder=3, gid=f"{axis} top-1")
        operations.bar(values, [row["macs"] / 1e6 for row in rows], 0.6, color=fills, edgecolor="black")
        accuracy.set_title(axis.replace("_", " "))
        for panel in (accuracy, operations):
            panel.margins(x=0.2)
            panel.set_axisbelow(True)
            panel.tick_params("x", labelsize=12, rotation=20 if any(len(value) > 4 for value in values) else 0)
    panels[0, 0].set_ylabel("top-1 accuracy (%)")
    panels[1, 0].set_ylabel("multiply-accumulates (M)")
    figure.suptitle("Filled: the base. Lines: standard error over the seeds", fontsize=13)
    return figure
