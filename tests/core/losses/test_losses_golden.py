"""Values and gradients recorded from the official code: SimCLR in TensorFlow, SuNCEt, SimCLRv2's notebook."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_core import PAWSLoss, distillation, nt_xent, paws, suncet

Recorded = np.lib.npyio.NpzFile
Golden = Callable[[str], Recorded]
Differentiate = Callable[..., tuple[Tensor, ...]]


def tensor(recorded: Recorded, key: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(recorded[key]).to(dtype)


def found(recorded: Recorded, pattern: str) -> list[re.Match[str]]:
    """Return the recorded keys of this form, and fail if there are none."""
    matches = [match for match in (re.fullmatch(pattern, key) for key in recorded.files) if match]
    assert matches, f"nothing recorded like {pattern}"
    return matches


def compare(ours: tuple[Tensor, ...], value: Tensor, grad: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours[0].double(), value, rtol=tolerance, atol=0)
    torch.testing.assert_close(ours[1].double(), grad, rtol=0, atol=tolerance * max(1.0, grad.abs().max().item()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-6)])
def test_nt_xent_is_half_of_tensorflow(
    golden: Golden, differentiate: Differentiate, dtype: torch.dtype, tolerance: float
) -> None:
    """The official code adds two directions, each a mean over N: twice the paper's mean over 2N."""
    recorded = golden("vision")
    for match in found(recorded, r"(ntxent/N(\d+)_D\d+)/tau([\d.]+)/loss_f64"):
        group, n, temperature = match.group(1), int(match.group(2)), float(match.group(3))
        hidden = tensor(recorded, f"{group}/hidden", dtype)
        ours = differentiate(lambda z, n=n, t=temperature: 2 * nt_xent(z[:n], z[n:], temperature=t), hidden)
        key = match.group(0).removesuffix("loss_f64")
        compare(ours, tensor(recorded, f"{key}loss_f64"), tensor(recorded, f"{key}grad_f64"), tolerance)


def test_nt_xent_of_identical_views(golden: Golden, differentiate: Differentiate) -> None:
    recorded = golden("vision")
    hidden = tensor(recorded, "ntxent/identical_views/hidden")
    ours = differentiate(lambda z: 2 * nt_xent(*z.chunk(2), temperature=0.1), hidden)
    key = "ntxent/identical_views"
    compare(ours, tensor(recorded, f"{key}/loss_f64"), tensor(recorded, f"{key}/grad_f64"))


def test_nt_xent_is_the_suncet_release(golden: Golden, differentiate: Differentiate) -> None:
    """Its first release has the full gradient; today's code detaches one side, which changes only the gradient."""
    recorded = golden("vision")
    for match in found(recorded, r"suncet_repo_ntxent/(N(\d+)_D\d+)/tau([\d.]+)/v1_release_loss_f64"):
        n, temperature = int(match.group(2)), float(match.group(3))
        hidden = tensor(recorded, f"ntxent/{match.group(1)}/hidden")
        ours = differentiate(lambda z, n=n, t=temperature: nt_xent(z[:n], z[n:], temperature=t), hidden)
        key = match.group(0).removesuffix("v1_release_loss_f64")
        compare(ours, tensor(recorded, f"{key}v1_release_loss_f64"), tensor(recorded, f"{key}v1_release_grad_f64"))
        torch.testing.assert_close(ours[0], tensor(recorded, f"{key}loss_f64"), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-6)])
def test_suncet(golden: Golden, differentiate: Differentiate, dtype: torch.dtype, tolerance: float) -> None:
    recorded = golden("vision")
    for match in found(recorded, r"(suncet/C\d+_B\d+_D\d+)/tau([\d.]+)_smooth0/grad_f64"):
        group, temperature = match.group(1), float(match.group(2))
        z, labels = tensor(recorded, f"{group}/z", dtype), tensor(recorded, f"{group}/class_of_row", torch.int64)
        ours = differentiate(lambda z, y=labels, t=temperature: suncet(z, y, temperature=t), z)
        key = match.group(0).removesuffix("grad_f64")
        compare(ours, tensor(recorded, f"{key}loss_f64"), tensor(recorded, f"{key}grad_f64"), tolerance)
        # The first release sums the loss in float32.
        torch.testing.assert_close(ours[0].double(), tensor(recorded, f"{key}v1_release_loss_f64"), rtol=2e-6, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-8), (torch.float32, 1e-6)])
def test_suncet_with_smoothed_labels(
    golden: Golden, differentiate: Differentiate, dtype: torch.dtype, tolerance: float
) -> None:
    """Also with classes of one sample, for which our loss is finite. The official matrix of labels is float32."""
    recorded = golden("vision")
    for match in found(recorded, r"(suncet/C\d+_B\d+_D\d+)/tau([\d.]+)_smooth0.1/grad_f64"):
        group, temperature = match.group(1), float(match.group(2))
        z, labels = tensor(recorded, f"{group}/z", dtype), tensor(recorded, f"{group}/class_of_row", torch.int64)
        ours = differentiate(lambda z, y=labels, t=temperature: suncet(z, y, temperature=t, label_smoothing=0.1), z)
        key = match.group(0).removesuffix("grad_f64")
        compare(ours, tensor(recorded, f"{key}loss_f64"), tensor(recorded, f"{key}grad_f64"), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-8), (torch.float32, 2e-6)])
def test_paws(golden: Golden, differentiate: Differentiate, dtype: torch.dtype, tolerance: float) -> None:
    """Both terms, and the gradient of their sum."""
    recorded = golden("vision")
    views, supports = (tensor(recorded, f"paws/{name}", dtype) for name in ("anchor_views", "supports"))
    labels = tensor(recorded, "paws/labels_matrix").argmax(1)
    n = len(views) // 2
    parts = paws(views[:n], views[n:], supports, labels)
    for ours, name in zip(parts, ("loss", "me_max"), strict=True):
        torch.testing.assert_close(ours.double(), tensor(recorded, f"paws/{name}"), rtol=tolerance, atol=0)
    value, *grads = differentiate(lambda z, s: PAWSLoss()(z[:n], z[n:], s, labels), views, supports)
    assert value == sum(parts)
    for ours, name in zip(grads, ("anchor", "support"), strict=True):
        theirs = tensor(recorded, f"paws/grad_{name}")
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_distillation_of_the_notebook(
    golden: Golden, differentiate: Differentiate, dtype: torch.dtype, tolerance: float
) -> None:
    recorded = golden("vision")
    student, teacher = (tensor(recorded, f"kd/{who}_logits", dtype) for who in ("student", "teacher"))
    for match in found(recorded, r"kd/tau([\d.]+)/loss_f64"):
        t = float(match.group(1))
        ours = differentiate(lambda s, t=t: distillation(s, teacher, temperature=t, scale_by_temperature=True), student)
        key = match.group(0).removesuffix("loss_f64")
        compare(ours, tensor(recorded, f"{key}loss_f64"), tensor(recorded, f"{key}grad_f64"), tolerance)


def test_distillation_of_certain_teachers_is_cross_entropy(golden: Golden, differentiate: Differentiate) -> None:
    recorded = golden("vision")
    labels = tensor(recorded, "kd/labels", torch.int64)
    certain = torch.nn.functional.one_hot(labels, 7) * 1e4
    ours = differentiate(lambda s: distillation(s, certain.double()), tensor(recorded, "kd/student_logits"))
    compare(ours, tensor(recorded, "kd/supervised_loss_f64"), tensor(recorded, "kd/supervised_grad_f64"))
