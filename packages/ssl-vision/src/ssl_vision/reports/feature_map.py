"""Map of features by PCA and t-SNE: every image is a point, similar ones are close together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from contrastive_core.app.report.figures import INK, MUTED, PAPER, SERIES, new_figure
from contrastive_core.errors import UserError

_MARKERS = ("o", "^", "s")
_NAMED = len(SERIES) * 2
_FEWEST = 5
_PCA_DIMENSIONS = 50


def layout(features: NDArray[np.float32], *, seed: int) -> tuple[NDArray[np.float64], str]:
    """Compute positions ``[N, 2]`` of features ``[N, D]``, and describe the method.

    Features are scaled to length 1, as for nearest neighbours; PCA reduces them to at most 50 dimensions, t-SNE to two,
    starting from the first two of PCA. The result is a function of features and seed: it is computed on one thread,
    because sums over several threads have no fixed order.

    Raises:
        UserError: There are fewer than five images.
    """
    if len(features) < _FEWEST:
        raise UserError(f"a map needs at least {_FEWEST} images, found {len(features)}")
    # scikit-learn takes a second to import and is only needed for maps.
    from sklearn.decomposition import PCA  # noqa: PLC0415
    from sklearn.manifold import TSNE  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # noqa: PLC0415

    unit = features.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    dimensions = min(_PCA_DIMENSIONS, *unit.shape)
    perplexity = min(30.0, (len(unit) - 1) / 3)
    with threadpool_limits(1):
        pca = PCA(dimensions, svd_solver="full")
        components = pca.fit_transform(unit)
        tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
        positions: NDArray[np.float64] = tsne.fit_transform(components).astype(np.float64)
    variance = 100 * float(pca.explained_variance_ratio_.sum())
    return positions, (
        f"features of length 1, PCA to {dimensions} dimensions ({variance:.0f} % of the variance), "
        f"t-SNE with perplexity {perplexity:.3g}, seed {seed}"
    )


def draw_map(
    axes: Axes, positions: NDArray[np.float64], labels: NDArray[np.int64] | None, classes: Sequence[str]
) -> None:
    """Draw points coloured by class, with a legend; with more than twenty classes, only the largest are named."""
    axes.set_axis_off()
    axes.margins(0.02)  # t-SNE has no scale of its own: the map fills its frame
    size = float(np.clip(9000 / len(positions), 4, 36))
    if labels is None:
        axes.scatter(positions[:, 0], positions[:, 1], s=size, color=SERIES[0], alpha=0.7, linewidths=0)
        return
    counts = np.bincount(labels, minlength=len(classes))
    nonempty = [c for c in np.argsort(-counts, kind="stable") if counts[c]]
    legend_classes = sorted(nonempty if len(nonempty) <= _NAMED else nonempty[: _NAMED - 1])
    rest = ~np.isin(labels, legend_classes)
    if rest.any():
        others = f"{len(nonempty) - len(legend_classes)} other classes"
        axes.scatter(
            positions[rest, 0], positions[rest, 1], s=size, color=MUTED, alpha=0.25, linewidths=0, label=others
        )
    for (marker, colour), c in zip(itertools.product(_MARKERS, SERIES), legend_classes, strict=False):
        x, y = positions[labels == c].T
        axes.scatter(x, y, s=size, color=colour, marker=marker, alpha=0.75, linewidths=0, label=classes[c])
    legend = axes.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, labelcolor=INK, handletextpad=0.3,
        ncols=1,
    )  # fmt: skip
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
            handle.set_sizes([36])  # type: ignore[attr-defined]


def map_figure(
    positions: NDArray[np.float64],
    *,
    labels: NDArray[np.int64] | None,
    classes: Sequence[str],
    title: str,
    caption: str,
) -> Figure:
    """Return the map as a figure with title and caption."""
    figure = new_figure(8, 6.8)
    figure.set_facecolor(PAPER)
    draw_map(figure.subplots(), positions, labels, classes)
    figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold", color=INK)
    figure.supxlabel(caption, x=0.02, ha="left", fontsize=8.5, color=MUTED, linespacing=1.5)
    return figure
