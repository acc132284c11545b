"""Turn raw clips into the pictures of a training step: crop, make views, augment weakly and strongly."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from contrastive_core.rng import derive
from ssl_video.augment.crops import WeakOptions, spread_crops, weak_crop
from ssl_video.augment.strong import StrongOptions, strong_augment
from ssl_video.data.clip import Clips
from ssl_video.optical_flow.methods import FlowMethod
from ssl_video.views import check_views, make_views


class ClipAugment:
    """Makes the pictures that `MultiviewPseudoLabel` takes.

    Every draw is a function of (seed, id of the clip, view). Weak and strong pictures of a view share crop and flip.

    Args:
        size: side of the crop in pixels.
        views: which views.
        weak: options of crop and flip.
        strong: options of what strong augmentation adds.
        shared_geometry: all views of a clip are cropped alike; False: each for itself.
        flow: method of the view ``flow``.
        tg_gain: gain of the view ``tg``.

    Raises:
        ValueError: unknown views, or a size that is none.
    """

    def __init__(
        self,
        size: int,
        *,
        views: Sequence[str] = ("rgb", "tg"),
        weak: WeakOptions = WeakOptions(),  # noqa: B008
        strong: StrongOptions = StrongOptions(),  # noqa: B008
        shared_geometry: bool = True,
        flow: str | FlowMethod = "dis",
        tg_gain: float = 1.0,
    ) -> None:
        if size < 1:
            raise ValueError(f"ClipAugment got size={size}; expected at least 1 pixel")
        self.size, self.views = size, check_views(views)
        self.weak_options, self.strong_options, self.shared_geometry = weak, strong, shared_geometry
        self.flow, self.tg_gain = flow, tg_gain

    def weak(self, clips: Clips | Sequence[Clips], *, seed: int, ids: Tensor) -> dict[str, Tensor]:
        """Weakly augmented pictures by view, float32 ``[N, T, 3, size, size]``."""
        if self.shared_geometry:
            return self._views(self._cropped(clips, seed, ids), self.views)
        pictures: dict[str, Tensor] = {}
        for view in self.views:
            pictures |= self._views(self._cropped(clips, derive(seed, "geometry", view), ids), (view,))
        return pictures

    def weak_and_strong(
        self, clips: Clips | Sequence[Clips], *, seed: int, ids: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weakly augmented pictures, and strongly augmented ones of the same crops."""
        weak = self.weak(clips, seed=seed, ids=ids)
        strong = {
            view: strong_augment(pictures, view=view, seed=seed, ids=ids, options=self.strong_options)
            for view, pictures in weak.items()
        }
        return weak, strong

    def plain(self, clips: Clips | Sequence[Clips], *, crops: int = 1) -> list[dict[str, Tensor]]:
        """Pictures to test on: the middle, or several crops along the long side."""
        return [self._views(crop, self.views) for crop in spread_crops(clips, size=self.size, crops=crops)]

    def _cropped(self, clips: Clips | Sequence[Clips], seed: int, ids: Tensor) -> Clips:
        return weak_crop(clips, size=self.size, seed=seed, ids=ids, options=self.weak_options)

    def _views(self, clips: Clips, views: Sequence[str]) -> dict[str, Tensor]:
        return make_views(clips, views, flow=self.flow, tg_gain=self.tg_gain)
