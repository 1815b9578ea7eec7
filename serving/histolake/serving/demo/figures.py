"""The report's pictures, drawn with matplotlib, without a screen.

Each function takes evidence and gives a `data:` URI: SVG for lines and bars, PNG for maps and for what is drawn over a
photograph. One look for all: the page's ink on white, the two dyes of the stain as colours.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from histolake.serving.demo.evidence import ClassMap, Figures, GeneMap, Recipe, Section

__all__ = [
    "class_figure",
    "gene_figure",
    "loss_figure",
    "pearson_figure",
    "photograph",
    "recall_figure",
    "section_figure",
]

INK, SOFT, RULE = "#24212b", "#6d6876", "#dcd8e0"
HAEMATOXYLIN, EOSIN, GREY, OCHRE = "#4a3a8c", "#d1477a", "#b3aebb", "#c98a1b"
# Pale to dark over both dyes, each step darker than the one before: readable in print and for colour-blind eyes.
DYES = ["#f6eef2", "#efc3d5", "#df86ae", "#b4509b", "#74348a", "#371f63"]

STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "histolake",
}


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Any, np.ndarray]:
    """A figure in our style, inches, and its axes as a (rows, columns) array. Needs no screen and keeps no state."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False, **more)


def _uri(figure: Any, kind: str, dpi: int = 150) -> str:
    from matplotlib import rc_context

    stream = io.BytesIO()
    more: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {}
    if kind == "jpeg":
        more = {"pil_kwargs": {"quality": 82}}
    with rc_context(STYLE):
        figure.savefig(stream, format=kind, dpi=dpi, **more)
    mime = "image/svg+xml" if kind == "svg" else f"image/{kind}"
    return f"data:{mime};base64,{base64.b64encode(stream.getvalue()).decode()}"


def photograph(picture: bytes) -> str:
    """A patch as it is."""
    mime = "image/png" if picture.startswith(b"\x89PNG") else "image/jpeg"
    return f"data:{mime};base64,{base64.b64encode(picture).decode()}"


def _dyes() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("dyes", DYES)


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


# -- tissue --------------------------------------------------------------------------------------------------------


def section_figure(section: Section) -> str:
    """A section's image, cut to where its spots are: rings for those kept, crosses for those refused."""
    left, top, right, bottom = _frame(section)
    figure, ((axes,),) = _figure(4.6, 4.6 * 0.86)
    _bare(axes)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_aspect("equal")
    if section.picture is not None:
        from PIL import Image

        with Image.open(io.BytesIO(section.picture)) as image:
            axes.imshow(np.asarray(image.convert("RGB")), extent=(0, section.width_px, section.height_px, 0))
    _rings(axes, section.kept_S2, section.spot_px)
    if len(section.refused_S2):
        _crosses(axes, section.refused_S2, section.spot_px)
    return _uri(figure, "jpeg", dpi=180)


def _frame(section: Section) -> tuple[float, float, float, float]:
    """Left, top, right, bottom in pixels: the spots with a margin, widened to one shape for all sections."""
    spots_S2 = np.concatenate([section.kept_S2, section.refused_S2])
    if not len(spots_S2):
        return 0.0, 0.0, float(section.width_px), float(section.height_px)
    margin = 3 * section.spot_px
    (left, top), (right, bottom) = spots_S2.min(axis=0) - margin, spots_S2.max(axis=0) + margin
    width = max(right - left, (bottom - top) / 0.86)
    height = 0.86 * width
    x, y = (left + right) / 2, (top + bottom) / 2
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _rings(axes: Any, xy_S2: np.ndarray, diameter_px: float) -> None:
    from matplotlib.collections import EllipseCollection

    size = np.full(len(xy_S2), diameter_px)
    # A pale ring below the dark one, so that it shows on any stain.
    for colour, width in (("white", 2.2), (INK, 0.9)):
        rings = EllipseCollection(
            size, size, np.zeros(len(xy_S2)), units="x", offsets=xy_S2, offset_transform=axes.transData,
            facecolors="none", edgecolors=colour, linewidths=width,
        )  # fmt: skip
        axes.add_collection(rings)


def _crosses(axes: Any, xy_S2: np.ndarray, diameter_px: float) -> None:
    from matplotlib.collections import LineCollection

    half = diameter_px / 2
    strokes = [[(x - half, y - s * half), (x + half, y + s * half)] for x, y in xy_S2 for s in (1, -1)]
    axes.add_collection(LineCollection(strokes, colors="white", linewidths=3))
    axes.add_collection(LineCollection(strokes, colors=EOSIN, linewidths=1.6))


def _spot_map(
    axes: Any, xy_S2: np.ndarray, value_S: np.ndarray, diameter_px: float, limits: tuple[float, float]
) -> Any:
    """Filled spots of their true size; a scale of their own is the caller's to give."""
    from matplotlib.collections import EllipseCollection

    size = np.full(len(xy_S2), diameter_px)
    spots = EllipseCollection(
        size, size, np.zeros(len(xy_S2)), units="x", offsets=xy_S2, offset_transform=axes.transData,
        cmap=_dyes(), array=value_S, linewidths=0,
    )  # fmt: skip
    spots.set_clim(*limits)
    axes.add_collection(spots)
    margin = diameter_px
    axes.set_xlim(xy_S2[:, 0].min() - margin, xy_S2[:, 0].max() + margin)
    axes.set_ylim(xy_S2[:, 1].max() + margin, xy_S2[:, 1].min() - margin)
    axes.set_aspect("equal")
    _bare(axes)
    return spots


def _limits(value_S: np.ndarray) -> tuple[float, float]:
    """From the 2nd to the 98th percentile, so that one extreme spot does not bleach the rest."""
    low, high = (float(q) for q in np.percentile(value_S, [2, 98]))
    if high <= low:
        # Nearly all spots are equal, as for a gene that few of them have: those few are what there is to see.
        low, high = float(value_S.min()), float(value_S.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _pairs_of_maps(
    panels: Sequence[tuple[str, GeneMap | ClassMap, np.ndarray, np.ndarray]], labels: tuple[str, str]
) -> str:
    """Columns of two maps, one above the other, each with a scale of its own."""
    from matplotlib import rc_context

    first = panels[0][1].xy_S2
    spread = np.ptp(first, axis=0)
    ratio = float(np.clip(spread[1] / max(spread[0], 1.0), 0.6, 1.5))
    side = 2.2  # inches a column; a colour bar takes a sixth of it
    figure, axes_RC = _figure(side * len(panels) + 0.25, side * 0.84 * ratio * 2 + 0.6, 2, len(panels))
    with rc_context(STYLE):
        for column, (title, panel, upper_S, lower_S) in enumerate(panels):
            for row, value_S in enumerate((upper_S, lower_S)):
                axes = axes_RC[row, column]
                spots = _spot_map(axes, panel.xy_S2, value_S, _drawn(panel), _limits(value_S))
                bar = figure.colorbar(spots, ax=axes, shrink=0.55, aspect=16, pad=0.01)
                bar.outline.set_visible(False)
                bar.ax.tick_params(labelsize=6.5, length=0, pad=1.5)
                bar.locator = _few_ticks()
                bar.update_ticks()
                if column == 0:
                    axes.set_ylabel(labels[row], fontsize=8.5, color=SOFT)
            axes_RC[0, column].set_title(title, fontsize=9)
    return _uri(figure, "png", dpi=160)


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=3)


def _drawn(panel: GeneMap | ClassMap) -> float:
    """Diameter to draw, px: wider than the true spot where spots lie far apart, so that a map reads as a surface."""
    from scipy.spatial import cKDTree

    if len(panel.xy_S2) < 2:
        return panel.spot_px
    nearest, _ = cKDTree(panel.xy_S2).query(panel.xy_S2, k=2)
    return max(panel.spot_px, 0.92 * float(np.median(nearest[:, 1])))


def gene_figure(maps: Sequence[GeneMap]) -> str:
    """Genes of one section: measured above, predicted below, each on its own scale."""
    panels = [(f"{m.gene}\nr = {m.pcc:.2f}", m, m.measured_S, m.predicted_S) for m in maps]
    return _pairs_of_maps(panels, ("measured", "predicted"))


def class_figure(classes: Sequence[ClassMap]) -> str:
    """Marker sentences over one section: the markers as measured above, the served score below."""
    panels = [
        (f"{c.name}\nr = {c.pcc:.2f}" if c.pcc is not None else f"{c.name}\n", c, c.measured_S, c.score_S)
        for c in classes
    ]
    return _pairs_of_maps(panels, ("markers measured", "score from the image"))


# -- figures -------------------------------------------------------------------------------------------------------


def loss_figure(recipes: Sequence[Recipe]) -> str:
    """Loss against step: one panel a recipe, for their losses are different sums."""
    from matplotlib import rc_context

    figure, axes_RC = _figure(4.6 * len(recipes), 2.6, 1, len(recipes))
    with rc_context(STYLE):
        for axes, recipe in zip(axes_RC[0], recipes, strict=True):
            step, loss = np.array(recipe.loss, dtype=float).T if recipe.loss else np.zeros((2, 0))
            axes.plot(step, loss, color=GREY, linewidth=0.8)
            smooth = _running_mean(loss, max(1, len(loss) // 20))
            axes.plot(step, smooth, color=HAEMATOXYLIN if recipe.served else EOSIN, linewidth=1.8)
            axes.set_title(recipe.name + ("  (served)" if recipe.served else ""))
            axes.set_xlabel("step")
            axes.set_ylabel("training loss")
            axes.grid(True, axis="y")
            axes.set_ylim(bottom=0)
    return _uri(figure, "svg")


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the `width` values before and at each place: it never looks ahead."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    at = np.arange(1, len(values) + 1)
    start = np.maximum(at - width, 0)
    return (total[at] - total[start]) / (at - start) if len(values) else values


def recall_figure(recipes: Sequence[Recipe], side: str) -> str:
    """Recall@5% and @10% of each recipe beside chance and the linear CCA."""
    from matplotlib import rc_context

    shown = [(recipe, recipe.figures[side]) for recipe in recipes if side in recipe.figures]
    bars: list[tuple[str, str, float | None, float | None]] = []
    bars += [(r.name, HAEMATOXYLIN if r.served else EOSIN, f.recall_at_5pct, f.recall_at_10pct) for r, f in shown]
    if shown:
        base = next((f for r, f in shown if r.served), shown[0][1])
        bars.append(("linear CCA", OCHRE, base.cca_at_5pct, base.cca_at_10pct))
        bars.append(("chance", GREY, base.chance_at_5pct, base.chance_at_10pct))
    figure, ((axes,),) = _figure(4.6, 2.6)
    width = 0.8 / max(len(bars), 1)
    with rc_context(STYLE):
        for index, (name, colour, *values) in enumerate(bars):
            for group, value in enumerate(values):
                if value is None:
                    continue
                x = group + (index - (len(bars) - 1) / 2) * width
                axes.bar(x, 100 * value, 0.9 * width, color=colour, label=name if group == 0 else None)
                axes.text(x, 100 * value, f"{100 * value:.0f}", ha="center", va="bottom", fontsize=7.5, color=SOFT)
        axes.set_xticks([0, 1], ["Recall@5%", "Recall@10%"])
        axes.set_ylabel("% of patches")
        axes.grid(True, axis="y")
        axes.margins(y=0.12)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _uri(figure, "svg")


def pearson_figure(figures: Figures, recipe: Recipe) -> str:
    """Pearson per gene as violins of dots: the model beside ridge and the mean predictor."""
    from matplotlib import rc_context

    rows = [
        (recipe.name, HAEMATOXYLIN, figures.pcc_G),
        ("ridge", OCHRE, figures.pcc_ridge_G),
        ("mean predictor", GREY, figures.pcc_mean_predictor_G),
    ]
    shown = [(name, colour, v[np.isfinite(v)]) for name, colour, v in rows if v is not None and np.isfinite(v).any()]
    figure, ((axes,),) = _figure(5.4, 0.72 * len(shown) + 0.85)
    draw = np.random.default_rng(0)
    with rc_context(STYLE):
        for index, (_, colour, value_G) in enumerate(shown):
            y = len(shown) - 1 - index
            spread = (
                draw.uniform(-0.26, 0.26, len(value_G))
                if np.ptp(value_G) > 0
                else np.linspace(-0.26, 0.26, len(value_G))
            )
            axes.scatter(value_G, y + spread, s=7, color=colour, alpha=0.55, linewidths=0)
            mean = float(value_G.mean())
            axes.plot([mean, mean], [y - 0.36, y + 0.36], color=INK, linewidth=1.6)
            axes.text(mean, y + 0.38, f"{mean:.2f}", ha="center", va="bottom", fontsize=8, color=INK)
        axes.axvline(0, color=RULE, linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(shown)), [name for name, _, _ in reversed(shown)])
        axes.set_ylim(-0.5, len(shown) - 0.3)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("Pearson's r over the spots, one dot a gene")
    return _uri(figure, "svg")
