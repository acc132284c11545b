"""Dice and cross-entropy against values and gradients of the released code, and against the formulas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F

from ssl_medseg.losses.segmentation import class_weights, cross_entropy, dice_cross_entropy, dice_loss

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dice_with_bg": dice_loss,
    "dice_without_bg": lambda logits, target: dice_loss(logits, target, background=False),
    "ce": cross_entropy,
    "wce": lambda logits, target: cross_entropy(logits, target, weights=class_weights(logits.shape[1])),
}


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_of_the_released_code(
    golden: Callable[[str], np.lib.npyio.NpzFile], kind: str, name: str
) -> None:
    recorded = golden("medseg")
    logits = torch.from_numpy(recorded["dice_c4/logits"]).double().permute(0, 3, 1, 2).requires_grad_()
    target = (
        torch.from_numpy(recorded["dice_c4/label"])
        if kind == "hard"
        else torch.from_numpy(recorded["dice_c4/soft"]).double().permute(0, 3, 1, 2)
    )
    loss = LOSSES[name](logits, target)
    loss.backward()
    assert logits.grad is not None
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss.float(), torch.tensor(recorded[f"dice_c4/{kind}/{name}"]), rtol=1e-5, atol=1e-6)
    gradient = torch.from_numpy(recorded[f"dice_c4/{kind}/{name}_grad"]).permute(0, 3, 1, 2)
    torch.testing.assert_close(logits.grad.float(), gradient, rtol=1e-4, atol=1e-7)


def test_an_absent_class_has_no_gradient_of_its_own() -> None:
    """A single foreground class that is absent: its Dice is 0 whatever is predicted."""
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = dice_loss(logits, torch.zeros(1, 4, 4, dtype=torch.uint8), background=False)
    loss.backward()
    assert loss.item() == 1
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


def test_half_precision_is_computed_in_single() -> None:
    logits, target = 5 * torch.randn(2, 4, 64, 64), torch.randint(0, 4, (2, 64, 64))
    for loss in LOSSES.values():
        assert loss(logits.bfloat16(), target).dtype == torch.float32
        torch.testing.assert_close(loss(logits.bfloat16(), target), loss(logits.bfloat16().float(), target))


def test_cross_entropy_is_torchs_for_equal_weights() -> None:
    logits, target = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randint(0, 3, (2, 8, 8))
    torch.testing.assert_close(cross_entropy(logits, target), F.cross_entropy(logits, target))
    assert class_weights(4).tolist() == pytest.approx([0.1, 0.3, 0.3, 0.3])


def test_targets_of_another_shape_are_refused() -> None:
    logits = torch.zeros(2, 3, 8, 8)
    for target in (torch.zeros(2, 8, 8), torch.zeros(2, 8, 9, dtype=torch.long), torch.zeros(2, 2, 8, 8)):
        with pytest.raises(ValueError, match="the target has the shape"):
            dice_loss(logits, target)
    with pytest.raises(ValueError, match="one weight per class"):
        cross_entropy(logits, torch.zeros(2, 8, 8, dtype=torch.long), weights=torch.ones(2))


def test_dice_over_the_batch_and_cross_entropy_are_monais_and_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 9, 7, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, 4, (3, 9, 7), generator=generator)
    target[0] = 0  # a slice that lacks every structure
    loss = dice_cross_entropy(logits, target)
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1, smooth_dr=1)
    expected = dice(logits, target[:, None]) + F.cross_entropy(logits, target)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, wanted)
    assert gradient[0].abs().sum() > 0, "a slice without structures has a gradient"


def test_pixels_of_weight_0_do_not_count_in_dice_and_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 8, 8, generator=generator).requires_grad_()
    target, weight = torch.randint(0, 3, (2, 8, 8), generator=generator), torch.ones(2, 8, 8)
    torch.testing.assert_close(dice_cross_entropy(logits, target, weight), dice_cross_entropy(logits, target))
    weight[:, :4] = 0
    (gradient,) = torch.autograd.grad(dice_cross_entropy(logits, target, weight), logits)
    assert (gradient[:, :, :4] == 0).all()
    half = dice_cross_entropy(logits[:, :, 4:], target[:, 4:])
    entropy = F.cross_entropy(logits[:, :, 4:], target[:, 4:])
    torch.testing.assert_close(dice_cross_entropy(logits, target, weight), half - entropy / 2)
