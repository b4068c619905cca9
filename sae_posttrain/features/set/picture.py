"""The picture of a feature set: how each chosen feature reads on each group."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .feature_set import FeatureSet

_MAX_FEATURES_DRAWN = 24
_TARGET_COLOR = "#c0392b"
_OTHER_COLORS = ("#2c7fb8", "#7f8c8d", "#41ab5d", "#8e6bbf", "#b8860b", "#17a2a2")


def draw_features(feature_set: "FeatureSet", path: str | os.PathLike) -> Path:
    """
    Draw mean and standard deviation of the pre-activation per group, a row for each of the first 24 features. The
    ending of the file decides its format (`.png`, `.svg`, `.pdf`).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The picture needs matplotlib: pip install 'sae_posttrain[plots]'.") from error
    if not feature_set.groups:
        raise ValueError("The feature set has no statistics to draw. `find_features` measures them on texts.")
    shown = replace(feature_set, notes={})[:_MAX_FEATURES_DRAWN]
    targets = [group for group in shown.target_groups if group in shown.groups]
    groups = [*targets, *(group for group in shown.groups if group not in shown.target_groups)]
    figure = Figure(figsize=(8, 1.4 + 0.42 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    spread = 0.6 / len(groups)
    for place, group in enumerate(groups):
        column = shown.groups.index(group)
        is_target = group in shown.target_groups
        rows = [row + (place - (len(groups) - 1) / 2) * spread for row in range(len(shown))]
        axes.errorbar(
            shown.mean[:, column].tolist(),
            rows,
            xerr=shown.std[:, column].tolist(),
            fmt="o",
            markersize=6 if is_target else 4,
            elinewidth=1.6 if is_target else 0.8,
            color=_TARGET_COLOR if is_target else _OTHER_COLORS[place % len(_OTHER_COLORS)],
            label=f"{group} (target)" if is_target else group,
        )
    axes.set_yticks(range(len(shown)), shown.names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlabel("pre-activation (raw residual units): mean and standard deviation over tokens")
    title = f"Features for {', '.join(shown.target_groups) or 'no group'} on {shown.base_model or 'an unknown model'}"
    if len(shown) < len(feature_set):
        title += f" (first {len(shown)} of {len(feature_set)})"
    axes.set_title(title, fontsize=10)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
