"""Class probabilities of whole videos: several clips in time, several crops, each view alone and all together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from contrastive_core.pseudo_label import fuse
from ssl_video.augment import spread_crops
from ssl_video.data.reader import StoredFlow, read_clip
from ssl_video.data.sampling import clip_starts
from ssl_video.data.torchcodec_reader import ReaderName
from ssl_video.data.video_index import index_video
from ssl_video.data.video_set import Video
from ssl_video.model_folder import Recognizer
from ssl_video.views.make import make_views, needs_following

FUSED = "fused"


def classify(
    recognizer: Recognizer,
    video: Video,
    *,
    views: Sequence[str],
    clips: int = 10,
    crops: int = 3,
    to_the_end: bool = False,
    flow: StoredFlow | None = None,
    reader: ReaderName = "pyav",
) -> Tensor:
    """Mean probabilities of a video over clips and crops, by view: float32 ``[M, K]``; NaN for a view it lacks.

    Args:
        recognizer: a trained network.
        video: to classify.
        views: which views, of those it was trained on.
        clips: spread evenly in time.
        crops: along the long side.
        to_the_end: see `clip_starts`.
        flow: see `read_clip`; None: computed where a view needs it.
        reader: see `read_clip`.

    Raises:
        UserError: the file cannot be read.
    """
    recipe = recognizer.recipe
    stored = flow if "flow" in views else None
    following, needs_audio = needs_following(views, stored), "audio" in views
    starts = clip_starts(index_video(video.path).duration, recipe.clip, clips, to_the_end=to_the_end)
    read = [
        read_clip(video.path, start, recipe.clip, following=following, audio=needs_audio, flow=stored, reader=reader)
        for start in starts
    ]
    seen = spread_crops(read, size=recipe.size, crops=crops)
    silent = needs_audio and not any(bool(clip.has_audio.all()) for clip in read if clip.has_audio is not None)
    found = []
    for view in views:
        if view == "audio" and silent:
            found.append(torch.full((len(recipe.classes),), torch.nan))
            continue
        pictures = torch.cat(
            [make_views(crop, (view,), flow=recipe.flow, tg_gain=recipe.tg_gain)[view] for crop in seen]
        )
        found.append(recognizer.probabilities(pictures, view).mean(dim=0))
    return torch.stack(found)


def fused(by_view: Tensor) -> Tensor:
    """The mean over the views that a video has: ``[N, M, K]`` -> ``[N, K]``."""
    present = ~by_view.isnan().any(dim=2)
    return fuse(by_view.nan_to_num(0).transpose(0, 1), present=present.T)
