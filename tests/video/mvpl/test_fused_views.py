"""On generated videos appearance alone and motion alone fail, and both views together succeed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_video import ClipAugment, MultiviewPseudoLabel, views
from ssl_video.augment import StrongOptions
from ssl_video.data.clip import Clips
from ssl_video.data.synthetic import CLASSES, draw_video
from ssl_video.models.networks import SmallSlow, views_in_batch

LABELLED, UNLABELLED, TESTED = 8, 16, 20  # of each class
STEPS, BATCH, MU = 240, 8, 2
VIEWS = ("rgb", "tg")


def drawn(per_class: int, first: int) -> tuple[Clips, Tensor]:
    """Return four frames, four apart, the frames after them, and the classes."""
    videos = [
        torch.from_numpy(draw_video(name, np.random.default_rng([first + number, label])))
        for label, name in enumerate(CLASSES)
        for number in range(per_class)
    ]
    frames = torch.stack(videos).permute(0, 1, 4, 2, 3)
    labels = torch.arange(len(CLASSES)).repeat_interleave(per_class)
    return Clips(frames[:, ::4].contiguous(), frames[:, 1::4].contiguous()), labels


def chosen(clips: Clips, ids: Tensor) -> Clips:
    assert clips.following is not None
    return Clips(clips.frames[ids], clips.following[ids])


def accuracies(views_learned: tuple[str, ...]) -> dict[str, float]:
    """Train on few labels; return the accuracy of each view and of all together, in percent."""
    torch.manual_seed(0)
    few, labels = drawn(LABELLED, 0)
    many, _ = drawn(UNLABELLED, 1000)
    tested, truth = drawn(TESTED, 2000)
    network = SmallSlow(len(CLASSES), width=4, dropout=0.0)
    method = MultiviewPseudoLabel(
        network, classes=len(CLASSES), views=views_learned, threshold=0.6, warmup_steps=STEPS // 3, bn="split"
    )
    strong = StrongOptions(num_ops=1, magnitude=5, cutout=0.3, rgb_ops="geometric", motion_ops="geometric")
    augment = ClipAugment(28, views=views_learned, strong=strong)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, STEPS)
    for step in range(STEPS):
        ids, others = torch.randperm(len(few))[:BATCH], torch.randperm(len(many))[: BATCH * MU]
        known = augment.weak(chosen(few, ids), seed=step, ids=ids)
        weak, strengthened = augment.weak_and_strong(chosen(many, others), seed=step, ids=others)
        losses = method(known, labels[ids], weak, strengthened, step=step)
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    pictures = augment.plain(tested)[0]
    found = {}
    with torch.no_grad():
        for view in views_learned:
            with views_in_batch(network, [(view, len(truth))]):
                found[view] = network(views.normalize(pictures[view])).softmax(dim=1)
    found["fused"] = torch.stack(list(found.values())).mean(dim=0)
    return {view: 100 * (p.argmax(dim=1) == truth).double().mean().item() for view, p in found.items()}


@pytest.mark.parametrize("alone", VIEWS)
def test_a_view_alone_fails(alone: str) -> None:
    """Two classes it can distinguish, two it cannot: at best three of four clips, apart from luck."""
    assert 55 < accuracies((alone,))[alone] < 85


def test_the_views_together_win() -> None:
    found = accuracies(VIEWS)
    assert max(found["rgb"], found["tg"]) < 85
    assert found["fused"] > 88
