"""Boxes, CutMix and copy-paste: which pixels of which slice are used, with which class and weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions
from ssl_medseg.losses.segmentation import dice_cross_entropy
from ssl_medseg.models.network import NetworkOptions, SegmentationNetwork, build_network
from ssl_medseg.selftraining.losses import ConsistencyTerm, CopyPasteTerm, TeacherBatches, boxes
from ssl_medseg.selftraining.options import ConsistencyOptions
from ssl_medseg.training.slices import AugmentOptions, SegmentationBatches, SliceSet, stack_slices
from tests.medseg.toy_cases import toy_case

STILL = AugmentOptions(affine=False, elastic=0, intensity=False)
CLASSES = 3


class ByBrightness(nn.Module):
    """Classes by two thresholds; uncertain about dark pixels in the left half."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> Tensor:
        classes = (x[:, 0] > 0.2).long() + (x[:, 0] > 0.6)
        logits = self.scale * nn.functional.one_hot(classes, CLASSES).movedim(-1, 1)
        unsure = (classes == 0)[:, None] & (torch.arange(x.shape[-1]) < x.shape[-1] // 2)
        return torch.where(unsure, 0.01 * logits, logits)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with Run(tmp_path / "run", config={}, command="test", options=RunOptions(device="cpu", progress=False)) as r:
        yield r


def pseudo_labelled(run: Run, slices: SliceSet, *, batch_size: int, confidence: float) -> TeacherBatches:
    return TeacherBatches(
        run, slices, ByBrightness(), classes=CLASSES, batch_size=batch_size, augment=STILL, confidence=confidence
    )


def test_boxes_lie_inside_with_the_sides_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    sides, places = torch.rand(50, 2, generator=generator), torch.rand(50, 2, generator=generator)
    for box, side, place in zip(boxes((20, 30), sides, places), sides, places, strict=True):
        expected = np.zeros((20, 30), dtype=bool)
        start = [round(float(p * (n - s * n))) for p, s, n in zip(place, side, (20, 30), strict=True)]
        stop = [min(n, int(np.ceil(float(b + s * n) - 1e-4))) for b, s, n in zip(start, side, (20, 30), strict=True)]
        expected[start[0] : stop[0], start[1] : stop[1]] = True
        assert (box.numpy() != expected).sum() <= 30  # a row or column of rounding
        assert box.any()


def test_consistency_mixes_images_classes_and_certainty_alike(run: Run) -> None:
    slices = stack_slices([toy_case("u", labelled=False), toy_case("v", seed=1, labelled=False)])
    options = ConsistencyOptions(cutmix=1.0, ramp=0.5)
    pseudo = pseudo_labelled(run, slices, batch_size=8, confidence=options.confidence)
    term = ConsistencyTerm(run, pseudo, criterion=dice_cross_entropy, steps=100, options=options)
    images = term.images(3)
    expected = (images[:, 0] > 0.2).long() + (images[:, 0] > 0.6)
    assert torch.equal(term.labels, expected), "what is pasted takes its label along"
    plain = {tuple(image.flatten().tolist()) for image in slices.images}
    assert sum(tuple(image.flatten().tolist()) in plain for image in images) == 0, "every slice has a box of another"
    dark = expected == 0
    assert torch.equal(term.known, expected)
    logits = torch.randn(8, CLASSES, 32, 32, generator=torch.Generator().manual_seed(1))
    full = term.loss(logits, 50)
    assert float(term.loss(logits, 0)) == pytest.approx(float(full) * np.exp(-5), rel=1e-5)
    changed = logits + 5 * torch.randn_like(logits) * (term._used == 0)[:, None]
    assert term.loss(changed, 50) == pytest.approx(float(full), rel=1e-5), "unsure pixels do not count"
    assert 0 < float(term._used[dark].mean()) < 1
    again = term.images(3)
    assert torch.equal(images, again)


def test_copy_paste_puts_labels_and_pseudo_labels_where_their_pixels_are(run: Run) -> None:
    labelled = stack_slices([toy_case("l")])
    slices = stack_slices([toy_case("u", seed=1, labelled=False)])
    batches = SegmentationBatches(
        run, labelled, classes=CLASSES, pool=torch.arange(len(labelled)), batch_size=4, augment=STILL, purpose="pasted"
    )
    options = ConsistencyOptions(ramp=0.5)
    pseudo = pseudo_labelled(run, slices, batch_size=4, confidence=options.confidence)
    term = CopyPasteTerm(run, batches, pseudo, criterion=dice_cross_entropy, steps=100, options=options)
    images = term.images(50)
    known = batches.at(50)
    assert images.shape == (8, 1, 32, 32)
    inside = (images[4:] == known.images).squeeze(1)  # the box of labelled pixels in the unlabelled slices
    outside = (images[:4] == known.images).squeeze(1)
    assert torch.equal(inside, ~outside)
    assert float(inside.float().mean()) == pytest.approx((21 / 32) ** 2, abs=0.06)
    assert torch.equal(term._shares[4:].argmax(1)[inside], known.shares.argmax(1)[inside])
    assert (term._weights[4:][inside] == 1).all()
    assert set(term._weights[4:][~inside].unique().tolist()) == {0.0, 0.5}
    assert (term._weights[:4][outside] == 1).all()
    term.images(0)
    assert float(term._weights.unique()[1]) == pytest.approx(0.5 * np.exp(-5), rel=1e-4)


@pytest.mark.parametrize("name", ["plain-unet", "unet"])
def test_dropped_features_reach_the_decoder_of_the_plain_slices_alone(run: Run, name: str) -> None:
    slices = stack_slices([toy_case("u", labelled=False)])
    options = ConsistencyOptions(feature_dropout=0.5, ramp=0)
    pseudo = pseudo_labelled(run, slices, batch_size=4, confidence=options.confidence)
    term = ConsistencyTerm(run, pseudo, criterion=dice_cross_entropy, steps=10, options=options)
    images = term.images(0)
    assert len(images) == 8
    weak = pseudo.at(0)
    assert torch.equal(images[4:], weak.weak)
    assert torch.equal(term.known[4:], weak.classes * weak.used.long())
    torch.manual_seed(0)
    network = build_network(NetworkOptions(name, width=4), CLASSES).eval()
    first = torch.zeros(3, 1, 32, 32)  # the labelled slices of the step
    drop = term.drop(0)
    seen: list[list[Tensor]] = []
    assert drop is not None

    def kept(maps: list[Tensor]) -> list[Tensor]:
        seen.append(drop(maps))
        return seen[-1]

    logits = network.segment(network.features(torch.cat([first, images]), kept))
    plain = network(torch.cat([first, images]))
    torch.testing.assert_close(logits[:7], plain[:7])
    assert not torch.allclose(logits[7:], plain[7:])
    shares = []
    for before, after in zip(_encoder_maps(network, torch.cat([first, images])), seen[0], strict=True):
        torch.testing.assert_close(before[:7], after[:7])
        off = (after[7:] == 0).all(dim=(2, 3))
        shares += off.flatten().tolist()
        torch.testing.assert_close(after[7:], torch.where(off[..., None, None], 0.0, 2 * before[7:]))
    assert 0.35 < np.mean(shares) < 0.65
    halves = [dice_cross_entropy(logits[3:][part], term.labels[part], term._used[part]) for part in _HALVES]
    torch.testing.assert_close(term.loss(logits[3:], 0), (halves[0] + halves[1]) / 2)


_HALVES = (slice(0, 4), slice(4, 8))


def _encoder_maps(network: SegmentationNetwork, x: Tensor) -> list[Tensor]:
    maps = []
    handles = [level.register_forward_hook(lambda *call: maps.append(call[2].clone())) for level in network.trunk.down]
    network(x)
    for handle in handles:
        handle.remove()
    return maps


@pytest.mark.parametrize(
    "changed", [{"feature_dropout": 1.0}, {"confidence": 1.5}, {"smallest": 0.5}, {"box": 1.0}, {"weight": -1.0}]
)
def test_settings_out_of_range_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(UserError, match="consistency"):
        ConsistencyOptions(**changed)
