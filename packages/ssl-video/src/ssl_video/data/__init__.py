"""Videos on disk: reading clips frame by frame, finding labelled videos, data sets with a length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contrastive_core._lazy import load_on_use

if TYPE_CHECKING:
    from ssl_video.data.clips import ClipDataset
    from ssl_video.data.open import open_videos
    from ssl_video.data.reader import read_clip
    from ssl_video.data.sampling import ClipSpec, clip_start, clip_starts
    from ssl_video.data.video_index import VideoIndex, index_video
    from ssl_video.data.video_set import Video, VideoSet

_MODULE = {
    "ClipDataset": "clips",
    "ClipSpec": "sampling",
    "Video": "video_set",
    "VideoIndex": "video_index",
    "VideoSet": "video_set",
    "clip_start": "sampling",
    "clip_starts": "sampling",
    "index_video": "video_index",
    "open_videos": "open",
    "read_clip": "reader",
}

__all__ = [
    "ClipDataset",
    "ClipSpec",
    "Video",
    "VideoIndex",
    "VideoSet",
    "clip_start",
    "clip_starts",
    "index_video",
    "open_videos",
    "read_clip",
]

__getattr__, __dir__ = load_on_use(__name__, {name: f"ssl_video.data.{module}" for name, module in _MODULE.items()})
