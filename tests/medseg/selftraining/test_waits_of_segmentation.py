"""Steps of segmentation and self-training read nothing from the device, whose tensors have no values here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_core import synchronization
from contrastive_core.losses import local_contrastive
from ssl_medseg.losses.segmentation import segmentation_loss
from ssl_medseg.models import NetworkOptions, build_network
from ssl_medseg.models.largest_parts import largest_parts_of_slices
from ssl_medseg.selftraining import losses
from ssl_medseg.selftraining.contrast import BatchContrast, ContrastTerm
from ssl_medseg.selftraining.options import ConsistencyOptions, ContrastOptions, TeacherOptions
from ssl_medseg.training.optim import moving_average
from ssl_medseg.training.slices import AugmentOptions, SegmentationBatches, change_intensity, stack_slices
from tests.host_waits import DEVICE, Waits, device_run
from tests.medseg.toy_cases import toy_case

LABELLED = stack_slices([toy_case("a"), toy_case("b", seed=1)])
UNLABELLED = stack_slices([toy_case("c", seed=2)])
CLASSES = 3


class PseudoLabelled:
    """The slices of a round, some with pseudo-labels."""

    slices = UNLABELLED
    used = torch.arange(len(UNLABELLED))


@pytest.mark.parametrize("kind", ["strong", "paper"])
@pytest.mark.parametrize("loss", ["dice-ce", "dice", "dice-foreground", "cross-entropy"])
def test_a_step_of_supervised_training(kind: Any, loss: Any) -> None:
    """Everything but the optimiser, a fused torch kernel that this device lacks."""
    batches = SegmentationBatches(
        device_run(), LABELLED, classes=CLASSES, pool=torch.arange(len(LABELLED)), batch_size=4,
        augment=AugmentOptions(kind=kind), rare_share=0.5,
    )  # fmt: skip
    network = build_network(NetworkOptions("unet", 4), CLASSES, channels=1).to(DEVICE)
    average = moving_average(
        network, 0.99
    )  # the optimiser is one fused kernel of torch, which has none for this device
    criterion = segmentation_loss(loss, classes=CLASSES)
    with Waits(on_host=False) as waits:
        for step in range(2):
            batch = batches.at(step)
            value = criterion(network(batch.images), batch.shares)
            value.backward()
            average.update_parameters(network)
    assert not waits.found


@pytest.mark.parametrize("kind", ["strong", "paper"])
@pytest.mark.parametrize("method", ["rounds", "consistency", "copy-paste", "mean-teacher"])
def test_what_unlabelled_slices_add(method: str, kind: Any) -> None:
    run, augment = device_run(), AugmentOptions(kind=kind)
    criterion = segmentation_loss("dice-ce", classes=CLASSES)
    network = build_network(NetworkOptions("unet", 4), CLASSES, channels=1).to(DEVICE)
    options = ConsistencyOptions(feature_dropout=0.5 if method == "consistency" else 0.0)
    teacher = losses.TeacherBatches(
        run, UNLABELLED, network, classes=CLASSES, batch_size=4, augment=augment, confidence=0.9
    )
    labelled = SegmentationBatches(
        run, LABELLED, classes=CLASSES, pool=torch.arange(len(LABELLED)), batch_size=4, augment=augment
    )
    pool: Any = PseudoLabelled()
    made: dict[str, Callable[[], losses.Term]] = {
        "rounds": lambda: losses.PseudoTerm(
            run, pool, classes=CLASSES, batch_size=4, augment=augment, criterion=criterion, weight=1.0
        ),
        "consistency": lambda: losses.ConsistencyTerm(run, teacher, criterion=criterion, steps=9, options=options),
        "copy-paste": lambda: losses.CopyPasteTerm(
            run, labelled, teacher, criterion=criterion, steps=9, options=options
        ),
        "mean-teacher": lambda: losses.MeanTeacherTerm(
            run, UNLABELLED, network, batch_size=4, steps=9, options=TeacherOptions()
        ),
    }
    term = made[method]()
    with Waits(on_host=False) as waits:
        output = network(term.images(3))
        term.loss(output, 3).backward()
        assert term.known.device == DEVICE
    assert not waits.found


@pytest.mark.parametrize("options", [ContrastOptions(weight=0.1), ContrastOptions(weight=0.1, class_means="intra")])
def test_the_local_contrastive_loss(options: ContrastOptions) -> None:
    run = device_run()
    term = ContrastTerm(run, LABELLED, UNLABELLED, classes=CLASSES, options=replace(options, background=True))
    in_batch = BatchContrast(run, classes=CLASSES, options=options)

    def embedding(count: int) -> Tensor:
        return torch.zeros(count, 8, 32, 32, device=DEVICE, requires_grad=True)

    with Waits(on_host=False) as waits:
        images = term.images(2)
        term.loss(embedding(len(images)), 2).backward()
        in_batch.loss(embedding(6), torch.zeros(6, 32, 32, dtype=torch.int64, device=DEVICE), 2).backward()
    assert not waits.found


def test_noise_is_the_same_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    images, ids = torch.rand(5, 2, 8, 8), torch.arange(5)
    changed = [change_intensity(images, seed=3, ids=ids, options=AugmentOptions(kind="strong"))]
    monkeypatch.setattr(synchronization, "_FREE", set())
    changed.append(change_intensity(images, seed=3, ids=ids, options=AugmentOptions(kind="strong")))
    assert torch.equal(*changed)


def test_a_wrong_label_is_nan_where_it_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, pairs = torch.rand(2, 4, 6, 6), torch.tensor([[0, 1]])
    label = torch.randint(0, 3, (2, 6, 6), generator=torch.Generator().manual_seed(0))

    def loss(label: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return local_contrastive(embedding, label, pairs=pairs, num_classes=3, generator=generator)

    expected = loss(label)
    monkeypatch.setattr(synchronization, "_FREE", set())
    assert loss(label) == expected
    for wrong in (-1, 3):
        changed = label.clone()
        changed[0, 0, 0] = wrong
        assert loss(changed).isnan()


def spiral(side: int) -> np.ndarray:
    """A line one pixel wide that winds inwards: the longest path through a square."""
    image = np.zeros((side, side), np.uint8)
    y, x, lengths = 0, 0, [side - 1] * 3 + [n for n in range(side - 3, 0, -2) for _ in range(2)]
    image[0, 0] = 1
    for turn, length in enumerate(lengths):
        for _ in range(length):
            y, x = (y + (0, 1, 0, -1)[turn % 4], x + (1, 0, -1, 0)[turn % 4])
            image[y, x] = 1
    return image


def test_largest_parts_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As scipy finds them, whatever their shape; the first of several equal ones."""
    rng = np.random.default_rng(0)
    slices = [rng.integers(0, 4, (48, 40)) for _ in range(3)]
    slices += [(rng.random((48, 40)) < share).astype(int) for share in (0.3, 0.5, 0.6)]
    winding = [spiral(48)[:, :40], spiral(48)[::-1, :40], spiral(48)[:40].T, 2 * spiral(48)[::-1, ::-1][:, :40]]
    lines = np.zeros((48, 40), np.uint8)
    lines[::2] = 1
    lines[1::4, -1] = lines[3::4, 0] = 1
    cut = lines.copy()
    cut[21] = 0
    slices += [*winding, lines, lines[::-1], cut, np.zeros_like(lines), np.ones_like(lines)]
    classes = torch.from_numpy(np.stack([np.ascontiguousarray(each, dtype=np.int64) for each in slices]))
    expected = largest_parts_of_slices(classes)
    assert (expected != classes).any()
    monkeypatch.setattr(synchronization, "_FREE", set())
    with Waits() as waits:
        found = largest_parts_of_slices(classes)
    assert not waits.found
    assert torch.equal(found, expected)
    assert torch.equal(largest_parts_of_slices(classes[:1, :1, :1]), classes[:1, :1, :1])
