"""Draw some clips in all their views, weakly and strongly augmented."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from contrastive_core.app.report.figures import new_figure, to_png
from ssl_video.augment import ClipAugment, StrongOptions, WeakOptions
from ssl_video.data import ClipDataset, VideoSet
from ssl_video.models.model_folder import Recipe
from ssl_video.optical_flow.cache import open_flow
from ssl_video.reports.sections import VIEW_NAMES

_SHOWN = 3  # frames shown per clip


def view_sheet(videos: VideoSet, recipe: Recipe, config: Mapping[str, Any], *, clips: int, seed: int) -> bytes:
    """Draw a PNG file: two rows per clip (weak above strong) and three frames of each view.

    Args:
        videos: Videos to draw clips from.
        recipe: Recipe of the network.
        config: Configuration of the run, for its augmentation.
        clips: Number of clips.
        seed: Seed for the choice of clips.
    """
    views = recipe.views
    folder = config["read"]["flow_cache"]
    flow_cache = open_flow(None if folder is None else Path(str(folder)), method=recipe.flow, views=views)
    data = ClipDataset(videos, recipe.clip, following=True, audio="audio" in views, flow=flow_cache)
    places = torch.linspace(0, len(videos) - 1, min(clips, len(videos))).round().long()
    augment = ClipAugment(
        recipe.size,
        views=views,
        weak=WeakOptions(**config["weak"]),
        strong=StrongOptions(**config["strong"]),
        shared_geometry=bool(config["inputs"]["shared_geometry"]),
        flow=recipe.flow,
        tg_gain=recipe.tg_gain,
    )
    samples = [data.clip(int(place), seed=seed).clip for place in places]
    both = augment.weak_and_strong(samples, seed=seed, ids=places)
    frames = torch.linspace(0, recipe.clip.frames - 1, min(_SHOWN, recipe.clip.frames)).round().long().tolist()
    columns = len(views) * len(frames)
    figure = new_figure(0.95 * columns, 1.05 * 2 * len(samples))
    grid = figure.subplots(2 * len(samples), columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for clip in range(len(samples)):
        for row, pictures in enumerate(both):
            for number, (view, frame) in enumerate((view, frame) for view in views for frame in frames):
                axes = grid[2 * clip + row][number]
                axes.imshow((pictures[view][clip, frame] / 255).clamp(0, 1).permute(1, 2, 0).numpy())
                if number == 0:
                    name = videos[int(places[clip])].label or ""
                    axes.set_title(f"{name[:14]}\n{'strong' if row else 'weak'}" if not row else "strong", fontsize=6)
                elif frame == frames[0]:
                    axes.set_title(VIEW_NAMES.get(view, view), fontsize=6)
    return to_png(figure)
