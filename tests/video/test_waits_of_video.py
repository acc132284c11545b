"""Training steps, loading and optical flow read nothing from the device, whose tensors have no values here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_video.augment import ClipAugment
from ssl_video.data.clip import Clips, ClipSpec, Sample
from ssl_video.models.networks import SmallSlow
from ssl_video.mvpl.method import MultiviewPseudoLabel
from ssl_video.optical_flow.methods import _raft_flow
from ssl_video.training.loader import Feed
from ssl_video.views import make_views
from tests.host_waits import DEVICE, Waits, device_run


def test_the_feed_moves_batches_without_waiting() -> None:
    class Source:
        """Eight clips in memory."""

        spec = ClipSpec(4, 2)
        videos = SimpleNamespace(labels=lambda: torch.arange(8) % 2)

        def __len__(self) -> int:
            return 8

        def clip(self, index: int, *, seed: int) -> Sample:
            frames = torch.full((1, 4, 3, 20, 24), index, dtype=torch.uint8)
            return Sample(Clips(frames, frames), index)

    run, source = device_run(), Source()
    run.options = SimpleNamespace(workers=0)
    augment = ClipAugment(16, views=("rgb", "tg"))
    feed = Feed(run, source, source, augment, batch_size=2, mu=2, total_steps=3, first_unlabelled=0)  # type: ignore[arg-type]
    with Waits(on_host=False) as waits:
        batch = feed.batch(0)
    assert batch.labelled["rgb"].device == batch.strong["tg"].device == batch.labels.device == DEVICE
    assert not waits.found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": "adaptive"},
        {"align": True},
        {"teacher": "average"},
        {"weak_batch": "joint"},
        {"mix": 1.0},
        {"directed": (1,)},
        {"agreement_weight": 1.0},
        {"select": "freematch"},
        {"select": "softmatch"},
    ],
)
def test_a_step_with_a_moving_average(options: dict[str, Any]) -> None:
    network: nn.Module = SmallSlow(4, width=4)
    mvpl = MultiviewPseudoLabel(network, classes=4, ema_decay=0.9, threshold=0.6, **options).to(DEVICE)
    mvpl._has_checked_scale = mvpl._has_checked_logits = mvpl._has_checked_modes = True  # as the first step does, once

    def pictures(n: int) -> dict[str, Tensor]:
        return {view: torch.zeros(n, 4, 3, 16, 16, device=DEVICE) for view in ("rgb", "tg")}

    some = {"tg": torch.tensor([True, False, True, True])}
    with Waits(on_host=False) as waits:
        for step in range(2):
            labels = torch.zeros(4, dtype=torch.int64, device=DEVICE)
            losses = mvpl(
                pictures(4),
                labels,
                pictures(4),
                pictures(4),
                step=step,
                present=some,
                labelled_present=some,
            )
            losses.loss.backward()
            mvpl.update()
    assert not waits.found


def test_optical_flow_on_a_device() -> None:
    """torchvision's RAFT makes its grid of coordinates on the host; nothing is read."""
    from torchvision.models.optical_flow import raft_small

    flow = _raft_flow(raft_small(weights=None).eval().to(DEVICE))
    frames = torch.zeros(2, 3, 40, 56, dtype=torch.uint8, device=DEVICE)
    with Waits(on_host=False) as waits:
        assert flow(frames, frames).shape == (2, 2, 40, 56)
    assert all("network(a, b)" in line for line in waits.found)


def test_views_of_clips_on_a_device() -> None:
    clips = torch.zeros(2, 4, 3, 20, 24, dtype=torch.uint8, device=DEVICE)
    with Waits(on_host=False) as waits:
        found = make_views(Clips(clips, clips), ("rgb", "tg"))
    assert found["tg"].device == DEVICE
    assert not waits.found
