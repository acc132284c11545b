"""The GPU path of the losses, in which the host reads no value, run on the CPU as if reading were costly there."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_core import synchronization
from contrastive_core.losses import count_skipped_anchors, paws, suncet, supcon
from contrastive_core.similarity import self_lse, torch_backend, use_backend
from tests.core.losses.loss_cases import Differentiate, Formulas, randn, some_labels
from tests.host_waits import Waits

MARKED = torch.tensor([0, -1, 2, 0, -1, -1, 2, 0, 5, -1])


@pytest.fixture(autouse=True)
def nothing_is_free(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(synchronization, "_FREE", set())
    with use_backend("torch"):
        yield


@pytest.mark.parametrize("loss", [suncet, supcon])
@pytest.mark.parametrize("t", [0.05, 0.5])
@pytest.mark.parametrize(("n", "classes"), [(2, 1), (9, 3), (60, 7), (60, 60)])
def test_values_and_gradients_of_the_formula(
    loss: Callable[..., Tensor], t: float, n: int, classes: int, formulas: Formulas, differentiate: Differentiate
) -> None:
    z, labels = randn(n, 5), some_labels(n, classes)
    with Waits() as waits:
        found = differentiate(lambda z: loss(z, labels, temperature=t), z)
    assert not waits.found
    exact = differentiate(lambda z: getattr(formulas, loss.__name__)(z, labels, t), z)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("mark", [-1, 255, 1])
def test_unlabelled_samples(
    smoothing: float, mark: int, monkeypatch: pytest.MonkeyPatch, differentiate: Differentiate
) -> None:
    z, labels = randn(10, 4), torch.where(MARKED == -1, mark, MARKED)
    losses: list[Callable[[Tensor], Tensor]] = [
        lambda z: suncet(z, labels, label_smoothing=smoothing, ignore_index=mark),
        lambda z: supcon(z, labels, ignore_index=mark),
    ]
    with Waits() as waits:
        found = [differentiate(loss, z) for loss in losses]
    assert not waits.found
    monkeypatch.undo()  # the host path, which other tests compare with the formulas
    for ours, loss in zip(found, losses, strict=True):
        torch.testing.assert_close(ours, differentiate(loss, z), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_nan_in_unlabelled_rows_has_no_effect(smoothing: float, differentiate: Differentiate) -> None:
    z, unlabelled = randn(10, 4), MARKED == -1
    loss = functools.partial(suncet, labels=MARKED, label_smoothing=smoothing, ignore_index=-1)
    with Waits() as waits:
        found = differentiate(loss, z.masked_fill(unlabelled[:, None], torch.nan))
    assert not waits.found
    torch.testing.assert_close(found, differentiate(loss, z), rtol=1e-12, atol=0)
    assert (found[1][unlabelled] == 0).all()


@pytest.mark.parametrize("labelled", [0, 1])
def test_next_to_no_labels_is_zero_with_zero_gradient(labelled: int, differentiate: Differentiate) -> None:
    z, labels = randn(5, 4), torch.full((5,), -1)
    labels[:labelled] = 3
    for smoothing in (0.0, 0.1):
        value, grad = differentiate(
            lambda z: suncet(z, labels, ignore_index=-1, label_smoothing=smoothing),  # noqa: B023
            z,
        )
        assert value == 0
        assert (grad == 0).all()


@pytest.mark.parametrize("among", ["same", "other"])
@pytest.mark.parametrize("n", [5, 40])
def test_tiles_of_a_device(among: str, n: int, monkeypatch: pytest.MonkeyPatch, differentiate: Differentiate) -> None:
    """One masked tile without reading; several for a larger batch, whose ends are read with the same class alone."""
    monkeypatch.setattr(torch_backend, "_BLOCK", {"cpu": 16})
    monkeypatch.setattr(torch_backend, "_BLOCK_WITHIN_CLASSES", 6)
    z, classes = randn(n, 3) / 2, some_labels(n, 4).sort().values
    classes[-2:] = torch_backend.NO_CLASS

    def total(z: Tensor) -> Tensor:
        lse = self_lse(z, scale=3.0, classes=classes, among=among, max_norm=2.0)  # type: ignore[arg-type]
        return lse.masked_fill(lse == -torch.inf, -1.0).square().sum()

    with Waits() as waits:
        found = differentiate(total, z)
    assert bool(waits.found) == (among == "same" and n > 16)
    with use_backend("reference"):
        torch.testing.assert_close(found, differentiate(total, z), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", [suncet, supcon, lambda z, y: suncet(z, y, label_smoothing=0.1)])
def test_a_negative_label_gives_nan(loss: Callable[..., Tensor], differentiate: Differentiate) -> None:
    value, grad = differentiate(lambda z: loss(z, torch.tensor([0, 0, -1, 1])), randn(4, 3))
    assert value.isnan()
    assert grad.isnan().any()


def test_what_reads_in_any_case_refuses_a_negative_label() -> None:
    labels, z = torch.tensor([0, 0, -1, 1]), randn(4, 3)
    with pytest.raises(ValueError, match="the smallest label is -1"):
        count_skipped_anchors(labels)
    with pytest.raises(ValueError, match="the smallest label is -1"):
        paws(z, z, z, labels)


def test_recorded_values(golden: Callable[[str], np.lib.npyio.NpzFile], differentiate: Differentiate) -> None:
    """SuNCEt as in the official code, with and without label smoothing."""
    recorded = golden("vision")
    keys = [key for key in recorded.files if key.startswith("suncet/") and key.endswith("smooth0/grad_f64")]
    assert keys
    for key in keys:
        group, temperature = key.split("/tau")[0], float(key.split("/tau")[1].split("_")[0])
        z = torch.from_numpy(recorded[f"{group}/z"]).double()
        labels = torch.from_numpy(recorded[f"{group}/class_of_row"]).long()
        value, grad = differentiate(lambda z: suncet(z, labels, temperature=temperature), z)  # noqa: B023
        torch.testing.assert_close(
            value, torch.tensor(recorded[key.replace("grad", "loss")]).double(), rtol=1e-9, atol=0
        )
        torch.testing.assert_close(grad, torch.from_numpy(recorded[key]), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("n", "share", "t"), list(itertools.product([4, 30], [0.1, 0.9], [0.1, 0.6])))
def test_smoothed_labels(n: int, share: float, t: float, formulas: Formulas, differentiate: Differentiate) -> None:
    z, labels = randn(n, 4), some_labels(n, 5)
    with Waits() as waits:
        found = differentiate(lambda z: suncet(z, labels, temperature=t, label_smoothing=share), z)
    assert not waits.found
    exact = differentiate(lambda z: formulas.smoothed_suncet(z, labels, t, share), z)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-10 / t)
