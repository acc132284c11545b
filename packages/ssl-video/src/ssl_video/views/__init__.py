"""The views of a clip: appearance, motion and sound, each as a picture that one shared network takes.

A clip is uint8 ``[..., T, 3, H, W]``; a picture is float32 of the same shape on the scale 0 to 255. Motion is seen
between a frame and the one that follows it in the video, not the next one sampled: give those as `following`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from contrastive_core._lazy import load_on_use

if TYPE_CHECKING:
    from ssl_video.data.sampling import Clips
    from ssl_video.views.audio import log_mel
    from ssl_video.views.make import NEUTRAL, VIEWS, make_views
    from ssl_video.views.methods import flow_method
    from ssl_video.views.motion import (
        displacement,
        flow_picture,
        mirror_flow,
        optical_flow,
        resize_flow,
        temporal_gradient,
    )
    from ssl_video.views.pictures import normalize, rgb

_MODULE = {
    "Clips": "make",
    "NEUTRAL": "make",
    "VIEWS": "make",
    "displacement": "motion",
    "flow_method": "methods",
    "flow_picture": "motion",
    "log_mel": "audio",
    "make_views": "make",
    "mirror_flow": "motion",
    "normalize": "pictures",
    "optical_flow": "motion",
    "resize_flow": "motion",
    "rgb": "pictures",
    "temporal_gradient": "motion",
}

__all__ = [
    "NEUTRAL",
    "VIEWS",
    "Clips",
    "displacement",
    "flow_method",
    "flow_picture",
    "log_mel",
    "make_views",
    "mirror_flow",
    "normalize",
    "optical_flow",
    "resize_flow",
    "rgb",
    "temporal_gradient",
]

__getattr__, __dir__ = load_on_use(__name__, {name: f"ssl_video.views.{module}" for name, module in _MODULE.items()})
