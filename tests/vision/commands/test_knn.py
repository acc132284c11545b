"""The nearest-neighbour vote against scikit-learn's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from contrastive_core.errors import UserError
from ssl_vision.commands.knn import knn
from ssl_vision.commands.make_splits import LabelDrawOptions, make_splits
from ssl_vision.commands.transfer import transfer
from ssl_vision.evaluation.probes import knn_scores
from ssl_vision.evaluation.scores import ProbeOptions


@given(
    queries=st.integers(1, 40),
    bank=st.integers(1, 300),
    classes=st.integers(1, 12),
    k=st.integers(1, 320),
    temperature=st.sampled_from([0.01, 0.07, 0.1, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_vote_equals_scikit_learn(queries: int, bank: int, classes: int, k: int, temperature: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, query = rng.normal(size=(bank, 16)), rng.normal(size=(queries, 16)) * 5
    labels = np.concatenate([np.arange(min(classes, bank)), rng.integers(0, classes, max(bank - classes, 0))])

    def weight(distance: np.ndarray) -> np.ndarray:
        # The largest similarity of a query is taken off, as only ratios of votes matter.
        similarity = 1 - distance
        return np.exp((similarity - similarity.max(axis=1, keepdims=True)) / temperature)

    reference = KNeighborsClassifier(min(k, bank), metric="cosine", weights=weight, algorithm="brute")
    expected = reference.fit(features, labels).predict_proba(query)
    scores = knn_scores(
        torch.from_numpy(query), torch.from_numpy(features), torch.from_numpy(labels),
        num_classes=classes, k=k, temperature=temperature,
    )  # fmt: skip
    probability = (scores / scores.sum(dim=1, keepdim=True)).numpy()[:, np.unique(labels)]
    np.testing.assert_allclose(probability, expected, atol=2e-4)


def test_a_query_in_the_bank_finds_itself() -> None:
    bank = torch.eye(5) * torch.tensor([1.0, 100.0, 1e-3, 7.0, 1e4])[:, None]
    scores = knn_scores(bank, bank, torch.tensor([2, 0, 1, 1, 0]), num_classes=3, k=1)
    assert scores.argmax(dim=1).tolist() == [2, 0, 1, 1, 0]


def test_pixels_of_digits_vote_well() -> None:
    score = knn("pixels", "digits", k=5)
    assert score.top1 > 95
    assert score.images == 364
    assert score.top5 is not None
    assert score.top5 >= score.top1


def test_a_number_of_neighbours_beyond_the_images_is_said(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    make_splits("digits", file, draw=LabelDrawOptions(fractions=(), per_class=(2,), draws=1))
    score = knn(
        "pixels", "digits", k=500, probe=ProbeOptions(labels=file / "2-per-class-draw0.json", out=tmp_path / "knn.json")
    )
    assert "; k 20, all labelled images (500 requested)" in str(score)
    assert score.settings["k"] == 20
    assert score.found == json.loads((tmp_path / "knn.json").read_text())["found"]
    assert not knn("pixels", "digits", k=5).found


@pytest.mark.parametrize("arguments", [{"k": 0}, {"temperature": 0.0}])
def test_impossible_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(UserError, match="got k="):
        knn("pixels", "digits", **arguments)  # type: ignore[arg-type]


def test_classes_in_another_spelling_are_named(write, noise) -> None:
    root = write({f"{split}/{name}/{i}.png": noise(i) for split, name, i in (
        ("train", "Cat", 1), ("train", "dog", 2), ("test", "cat", 3), ("test", "dog", 4)
    )})  # fmt: skip
    with pytest.raises(
        UserError, match=r"those trained on: cat only here \('cat' is 'Cat' in another spelling\); both"
    ):
        knn("pixels", str(root))


def test_the_images_of_a_test_are_others_and_classes_without_any_are_counted(write, noise) -> None:
    names = ("train/a/1", "train/b/2", "val/a/3")
    root = str(write({f"{name}.png": noise(number) for number, name in enumerate(names)}))
    assert knn("pixels", root, k=1).found["classes without test images"] == 1
    for train, test in (("train", "Training"), ("val", "test"), ("validation", "test"), ("all", "test")):
        with pytest.raises(UserError, match="hold the same images"):
            knn("pixels", root, probe=ProbeOptions(train_part=train, test_part=test))
    same = knn("pixels", root, k=1, probe=ProbeOptions(test_part="train"))
    assert str(same).endswith("; tested on the training images")
    with pytest.raises(UserError, match="val_part 'Val' is also used elsewhere"):
        transfer("pixels", root, val_part="Val")
