"""Dice of volumes against scikit-learn and recorded values, and which values are averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

from contrastive_core.training import Run, RunOptions
from ssl_medseg.evaluation.metrics import class_dice
from ssl_medseg.models import NetworkOptions, build_network, settle_statistics
from ssl_medseg.models.network import Refinement, slice_probabilities
from ssl_medseg.selftraining.student import Scoring
from ssl_medseg.training.optim import BestWeights, moving_average
from ssl_medseg.training.validation import Validation, VolumeScores, choose_refinement
from tests.medseg.toy_cases import toy_case

NAN = float("nan")


def test_dice_is_the_released_codes_f1(golden: Callable[[str], np.lib.npyio.NpzFile]) -> None:
    recorded = golden("medseg")
    truth, prediction = recorded["f1/gt"].astype(np.uint8), recorded["f1/pred"].astype(np.uint8)
    np.testing.assert_allclose(class_dice(prediction, truth, classes=4), recorded["f1/all_classes"], atol=1e-12)
    lacking = np.where(prediction == 3, 0, prediction).astype(np.uint8)
    np.testing.assert_allclose(class_dice(lacking, truth, classes=4), recorded["f1/pred_lacks_class3"], atol=1e-12)
    without = np.where(truth == 3, 0, truth).astype(np.uint8)
    np.testing.assert_allclose(class_dice(prediction, without, classes=4), recorded["f1/gt_lacks_class3"], atol=1e-12)
    # The released code's array is one shorter here, and its entry 3 of another class; ours says that there is none.
    both = class_dice(lacking, without, classes=4)
    np.testing.assert_allclose(both[:3], recorded["f1/both_lack_class3"], atol=1e-12)
    assert np.isnan(both[3])


def test_dice_of_random_volumes_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 6, (2, 9, 8, 7), dtype=np.uint8)
    expected = f1_score(truth.ravel(), prediction.ravel(), average=None)
    np.testing.assert_allclose(class_dice(prediction, truth, classes=6), expected)


def test_means_say_who_is_counted() -> None:
    scores = VolumeScores(
        ("a", "b", "c d"),
        np.array([[0.8, 0.4, NAN], [0.0, 0.6, NAN], [NAN, NAN, NAN]]),
        np.array([[True, True, False], [False, True, False], [False, False, False]]),
    )
    assert scores.mean == pytest.approx((0.6 + 0.3) / 2)
    assert scores.structures == {"a": pytest.approx(0.8), "b": pytest.approx(0.5)}
    assert scores.mean_present == pytest.approx(0.65)
    assert scores.false_structures == 1
    assert list(scores.record("x")) == ["x_dice", "x_dice_present", "x_false_structures", "x_dice_a", "x_dice_b"]
    nothing = VolumeScores(("a",), np.array([[NAN]]), np.array([[False]]))
    assert (nothing.mean, nothing.mean_present) == (0.0, 0.0)
    assert (scores.score, nothing.score) == (scores.mean, 0.0)
    assert replace(scores, recipe="strong").score == scores.mean_present
    assert replace(nothing, recipe="strong").score is None


@pytest.mark.parametrize(("recipe", "kept"), [("strong", "last step"), ("paper", "initial segmenter")])
def test_a_false_voxel_in_a_healthy_patient_does_not_bring_back_the_initial_segmenter(recipe: Any, kept: str) -> None:
    """The paper's Dice falls from 0.7 to 0.45, although the only patient with the structure improves."""
    present = np.array([[True], [False]])
    values = iter([np.array([[0.7], [NAN]]), np.array([[0.9], [0.0]])])
    run: Any = SimpleNamespace(track=lambda **_: None, say=lambda _: None)
    validation: Any = SimpleNamespace(scores=lambda _: VolumeScores(("a",), next(values), present, recipe))
    scoring = Scoring(run, validation, every=1)
    scoring.begin(nn.Linear(1, 1))
    scoring.best.offer(1.0, step=1, network=nn.Linear(1, 1))
    assert scoring.choose(nn.Linear(1, 1), keep="last", steps=1).startswith(kept)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_healthy_patients_alone_choose_no_step(keep: str) -> None:
    nothing = VolumeScores(("a",), np.array([[0.0]]), np.array([[False]]), "strong")
    run: Any = SimpleNamespace(track=lambda **_: None, say=lambda _: None, record=lambda **_: None)
    validation: Any = SimpleNamespace(scores=lambda *_, **__: nothing)
    scoring = Scoring(run, validation, every=1)
    scoring.begin(nn.Linear(1, 1))
    scoring.after(0, nn.Linear(1, 1), ends_round=True)
    assert scoring.choose(nn.Linear(1, 1), keep=keep, steps=1) == "last step (1)"
    assert choose_refinement(run, validation, nn.Linear(1, 1)) == Refinement()


class Brightness(nn.Module):
    """Predicts class 1 above 0.2 and class 2 above 0.6."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        distance = torch.cat([(x - level).abs() for level in (0.0, 0.4, 0.8)], 1)
        return -20 * distance * self.scale


def test_validation_scores_volumes_on_their_own_grid(tmp_path: Path) -> None:
    cases = [toy_case("a", slices=5), toy_case("b", slices=3, seed=1)]
    truths = [case.label.permute(1, 2, 0).numpy() for case in cases]
    truths[1] = truths[1].copy()
    truths[1][truths[1] == 2] = 0  # the prediction has it all the same
    with Run(tmp_path / "run", config={}, command="test", options=RunOptions(device="cpu", progress=False)) as run:
        network = Brightness().train()
        scores = Validation(run, cases, truths, ("one", "two")).scores(network)
    assert network.training
    np.testing.assert_allclose(scores.dice, [[1, 1], [1, 0]], atol=0.02)
    assert scores.present.tolist() == [[True, True], [True, False]]


def test_probabilities_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    network = build_network(NetworkOptions("unet", 2), 3)
    x = torch.randn(7, 1, 32, 32)
    network(x)
    whole = slice_probabilities(network, x, batch_size=7)
    torch.testing.assert_close(whole.sum(1), torch.ones(7, 32, 32))
    torch.testing.assert_close(slice_probabilities(network, x, batch_size=2), whole)
    with torch.no_grad():
        torch.testing.assert_close(whole, network.eval()(x).softmax(1))


def test_the_first_of_the_best_is_kept_through_a_checkpoint() -> None:
    network = nn.Linear(1, 1)
    best = BestWeights()
    best.give(network)
    for step, score in enumerate((0.2, 0.5, 0.5, 0.4), start=1):
        nn.init.constant_(network.weight, step)
        assert best.offer(score, step=step, network=network) == (step <= 2)
    restored = BestWeights()
    restored.load_state_dict(best.state_dict())
    assert not restored.offer(0.5, step=9, network=network)
    restored.give(network)
    assert (restored.score, restored.step, network.weight.item()) == (0.5, 2, 2.0)
    restored.reset()
    assert restored.offer(0.0, step=1, network=network)


def test_moving_average_is_the_formula_statistics_included() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = moving_average(network, 0.9)
    expected: dict[str, Tensor] = {}
    for step in range(5):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_()
        network(torch.randn(4, 1, 3, 3) + step)
        average.update_parameters(network)
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                expected[name] = value.clone() if step == 0 else 0.9 * expected[name] + 0.1 * value
    found = average.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_running_averages_fit_a_short_run() -> None:
    """After 12 steps on one batch, inference nearly agrees with training; without recalibration it is far off."""
    torch.manual_seed(0)
    x = 3 + 2 * torch.randn(8, 1, 96, 96)
    errors = []
    for settled in (True, False):
        torch.manual_seed(1)
        network = build_network(NetworkOptions("unet", 2), 2)
        if settled:
            settle_statistics(network, steps=12)
        for _ in range(12):
            trained = network(x)
        errors.append(float((network.eval()(x) - trained).detach().std() / trained.detach().std()))
    assert errors[0] < 0.2
    assert errors[1] > 0.5
    long = build_network(NetworkOptions("unet", 2), 2)
    settle_statistics(long, steps=1000)
    assert {m.momentum for m in long.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}


class Speckled(nn.Module):
    """Correct except for false parts of class 1 in the first and last row, which mirroring leaves in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        classes = (x[:, 0] > 0.2).long() + (x[:, 0] > 0.6)
        classes[:, (0, -1), 10:22] = 1
        return 9.0 * nn.functional.one_hot(classes, 3).movedim(-1, 1) + self.weight


def test_refinements_are_kept_where_validation_gains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = toy_case("v")
    assert case.label is not None
    truth = np.ascontiguousarray(case.label.numpy().transpose(1, 2, 0))
    with Run(tmp_path / "run", config={}, command="test", options=RunOptions(device="cpu", progress=False)) as run:
        validation = Validation(run, [case], [truth], ("first", "second"))
        network = Speckled()
        chosen = choose_refinement(run, validation, network)
        assert chosen == Refinement(mirror=False, largest=(1,))
        plain, refined = validation.scores(network), validation.scores(network, chosen)
        assert refined.structures["first"] > 0.99
        assert plain.structures["first"] < 0.95
        assert refined.structures["second"] == plain.structures["second"]
        assert choose_refinement(run, None, network) == Refinement()
    assert "largest component of first" in capsys.readouterr().err


def test_mirrored_probabilities_are_the_mean_of_four() -> None:
    torch.manual_seed(0)
    network = build_network(NetworkOptions("plain-unet", 2), 3)
    slices = torch.rand(5, 1, 32, 32)
    turned = [slices, slices.flip(2), slices.flip(3), slices.flip(2, 3)]
    back = [(), (2,), (3,), (2, 3)]
    with torch.no_grad():
        expected = sum(network(image).softmax(1).flip(dims) for image, dims in zip(turned, back, strict=True)) / 4
    torch.testing.assert_close(slice_probabilities(network, slices, batch_size=2, mirror=True), expected)
