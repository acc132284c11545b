"""Find videos, read clips from them, and split them into parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contrastive_core._lazy import load_on_use

if TYPE_CHECKING:
    from ssl_video.data.clip import Clips, ClipSource, ClipSpec, clip_start, clip_starts
    from ssl_video.data.listing import open_videos
    from ssl_video.data.reader import ClipDataset, read_clip
    from ssl_video.data.video_index import VideoIndex, index_video
    from ssl_video.data.videos import Video, VideoSet

_MODULE = {
    "ClipDataset": "reader",
    "ClipSource": "clip",
    "ClipSpec": "clip",
    "Clips": "clip",
    "Video": "videos",
    "VideoIndex": "video_index",
    "VideoSet": "videos",
    "clip_start": "clip",
    "clip_starts": "clip",
    "index_video": "video_index",
    "open_videos": "listing",
    "read_clip": "reader",
}

__all__ = [
    "ClipDataset",
    "ClipSource",
    "ClipSpec",
    "Clips",
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
