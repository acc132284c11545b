"""What recipe and effort set, what overrides them, and drawing of slices with the rarest structure."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest
import torch

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions
from ssl_medseg.models import NetworkOptions
from ssl_medseg.training.recipe import EFFORTS, OptimizerOptions, TrainingOptions, choose
from ssl_medseg.training.slices import AugmentOptions, SegmentationBatches, stack_slices
from ssl_medseg.training.supervised import train
from tests.medseg.grouped import grouped
from tests.medseg.toy_cases import toy_case


def test_recipe_and_effort_fill_in_what_is_not_given() -> None:
    strong = choose(device="cpu")
    assert (strong.effort, strong.largest, strong.steps) == ("hour", EFFORTS["hour"].size, EFFORTS["hour"].steps)
    assert (strong.network.name, strong.loss, strong.augment.kind) == ("plain-unet", "dice-ce", "strong")
    paper = choose(TrainingOptions("paper", "night"), device="cpu")
    assert (paper.network, paper.steps, paper.batch_size, paper.lr) == (NetworkOptions("unet", 16), 5000, 20, 1e-2)
    assert (paper.loss, paper.augment, paper.ema, paper.weight_decay) == ("dice", AugmentOptions("paper"), 0, 0)
    assert (paper.largest, paper.validate_every, paper.test_time) == (0, 50, False)


def test_what_is_given_comes_first() -> None:
    chosen = choose(
        TrainingOptions("strong", "minutes", steps=100, validate_every=7),
        OptimizerOptions(lr=1e-4, ema=0.0, weight_decay=0.0), device="cpu",
        network=NetworkOptions("unet", 0), augment=AugmentOptions("paper"),
    )  # fmt: skip
    assert (chosen.steps, chosen.lr, chosen.ema, chosen.weight_decay, chosen.validate_every) == (100, 1e-4, 0, 0, 7)
    assert chosen.network == NetworkOptions("unet", EFFORTS["minutes"].width)
    assert chosen.augment.kind == "paper"
    assert choose(device="cpu", network=NetworkOptions(width=4)).network == NetworkOptions("plain-unet", 4)
    assert choose(TrainingOptions("paper"), network=NetworkOptions(width=4), device="cpu").network.name == "unet"
    assert signature(train).parameters["network"].default == NetworkOptions()  # that of the command
    assert "recipe strong, effort minutes: 100 steps of 12 labelled slices, unet of width 16" in str(chosen)


def test_only_the_strong_recipe_uses_bfloat16_without_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert choose(device="cpu").precision == "bf16-mixed"
    assert choose(TrainingOptions("paper"), device="cpu").precision == "32-true"
    assert choose(TrainingOptions("paper"), device="cpu", precision="bf16-mixed").precision == "bf16-mixed"
    assert choose(device="cpu", precision="32-true").precision == "32-true"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert choose(device="cpu").precision == "32-true"


def test_a_short_run_is_averaged_over_its_last_tenth() -> None:
    assert choose(TrainingOptions(effort="hour", steps=50), device="cpu").ema == pytest.approx(0.8)
    assert choose(TrainingOptions(effort="hour", steps=5), device="cpu").ema == 0
    assert choose(TrainingOptions(effort="hour", steps=5000), device="cpu").ema == 0.99


@pytest.mark.parametrize(
    "changed", [{"steps": 0}, {"lr": 0.0}, {"ema": 1.0}, {"rare_share": 1.5}, {"weight_decay": -1}]
)
def test_numbers_out_of_range_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(UserError, match="expected steps and validate_every of at least 1"):
        choose(**grouped(effort="hour", **changed), device="cpu")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="got recipe 'weak' and effort 'hour'"):
        TrainingOptions("weak", "hour")  # type: ignore[arg-type]


def test_half_of_a_batch_shows_the_rarest_structure(tmp_path: Path) -> None:
    """Of the six slices of the toy cases, four show structure 2, and all show structure 1."""
    slices = stack_slices([toy_case("a"), toy_case("b", seed=1)])
    still = AugmentOptions(affine=False, elastic=0, intensity=False)
    with Run(tmp_path / "run", config={}, command="test", options=RunOptions(device="cpu", progress=False)) as run:

        def shares(rare: float) -> list[float]:
            batches = SegmentationBatches(
                run, slices, classes=3, pool=torch.arange(12), batch_size=8, augment=still, rare_share=rare
            )
            return [float((batches.at(step).shares[:, 2].amax((1, 2)) > 0.5).float().mean()) for step in range(60)]

        assert min(shares(0.5)) >= 0.5
        assert sum(shares(0.5)) / 60 == pytest.approx(0.5 + 0.5 * 8 / 12, abs=0.02)
        assert sum(shares(0.0)) / 60 == pytest.approx(8 / 12, abs=0.02)
        assert shares(1.0) == [1.0] * 60
        batches = SegmentationBatches(
            run,
            slices,
            classes=3,
            pool=torch.arange(12),
            batch_size=8,
            augment=AugmentOptions("strong"),
            rare_share=0.5,
        )
        one, again = batches.at(3), batches.at(3)
        assert torch.equal(one.images, again.images)
        assert len({tuple(image.flatten()[:50].tolist()) for image in one.images}) == 8
