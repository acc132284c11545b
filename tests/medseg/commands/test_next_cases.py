"""The most uncertain unlabelled case comes first, and no label is opened."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import scipy.stats
import torch

from contrastive_core.errors import UserError
from ssl_medseg.cli import main
from ssl_medseg.commands.next_cases import next_cases
from ssl_medseg.commands.predict import predict
from ssl_medseg.datasets import open_dataset
from ssl_medseg.datasets.splits import Split, fingerprint, identify, write_split
from ssl_medseg.evaluation.uncertainty import agreement, predictive_entropy, quality
from ssl_medseg.io import read_volume
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile
from ssl_medseg.models.model_folder import load_segmenter
from ssl_medseg.prediction import InferenceOptions, segment
from ssl_medseg.preprocessing import Preprocessing
from tests.medseg.small_models import random_segmenter
from tests.medseg.small_sets import AFFINE, SHAPE, decathlon, save_case

P = Preprocessing(size=(32, 32), spacing=(1.5, 1.5), orientation="RAS", percentiles=(0, 100))
LABELS = LabelMap(("background", "shell", "core"), (0, 1, 2))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a data set with one labelled and three unlabelled cases."""
    folder = tmp_path_factory.mktemp("next")
    random_segmenter(folder / "run" / "model", P, labels=LABELS, width=4)
    decathlon(folder / "data", ["a"], unlabelled=["b", "c", "d"])
    return folder


def test_agreement_is_the_mean_dice_of_all_pairs() -> None:
    draws = np.random.default_rng(0)
    masks = [draws.integers(0, 3, (5, 4, 3)).astype(np.uint8) for _ in range(4)]
    expected = []
    for structure in (1, 2):
        pairs = [
            2 * ((a == structure) & (b == structure)).sum() / ((a == structure).sum() + (b == structure).sum())
            for a, b in itertools.combinations(masks, 2)
        ]
        expected.append(np.mean(pairs))
    assert agreement(masks, classes=3) == pytest.approx(expected)
    assert agreement(masks, classes=4)[2] is None


def test_a_structure_in_one_prediction_alone_counts_against_the_agreement() -> None:
    empty, full = np.zeros((2, 2, 1), np.uint8), np.ones((2, 2, 1), np.uint8)
    # Of three pairs, two disagree entirely and one has the structure on neither side.
    assert agreement([empty, empty, full], classes=2) == (0.0,)
    assert agreement([full, full], classes=2) == (1.0,)
    assert quality([None, None]) == 0.0
    assert quality([0.5, None, 1.0]) == 0.75


def test_entropy_is_that_of_scipy() -> None:
    probabilities = torch.rand(7, 4, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    expected = scipy.stats.entropy(probabilities.numpy(), axis=1, base=4)
    np.testing.assert_allclose(predictive_entropy(probabilities).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("sided", [False, True])
def test_agreement_of_a_volume_is_that_of_its_mirrored_or_turned_files(place: Path, sided: bool) -> None:
    """Compare with mirroring or turning the volume instead of its prepared slices."""
    segmenter = load_segmenter(place / "run", device="cpu")
    array = np.asarray(nibabel.load(place / "data" / "imagesTr" / "b.nii.gz").dataobj)
    masks = []
    file = place / "moved.nii.gz"
    for axes, quarters in zip(((), (0,), (1,), (0, 1)), range(4), strict=True):
        nibabel.Nifti1Image(np.rot90(array, quarters) if sided else np.flip(array, axes), AFFINE).to_filename(file)
        mask = segment(read_volume(ImageFile(file)), segmenter.network, P).classes
        masks.append(np.rot90(mask, -quarters) if sided else np.flip(mask, axes))
    volume = read_volume(ImageFile(place / "data" / "imagesTr" / "b.nii.gz"))
    found = segment(volume, segmenter.network, P, uncertainty=True, sided=sided)
    assert found.agreement == pytest.approx(agreement(masks, classes=3))
    assert 0 < quality(found.agreement or ()) < 1
    np.testing.assert_array_equal(found.classes, masks[0])
    assert found.uncertainty is not None
    assert found.uncertainty.shape == SHAPE


def test_cases_with_structures_on_a_side_are_ranked_by_quarter_turns(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabelMap, "sided", ("left lobe",))
    model, data, exact = str(place / "run"), place / "data", InferenceOptions(device="cpu", precision="32-true")
    ranking = next_cases(model, str(data), tmp_path / "next", pictures=False, inference=exact)
    predicted = predict(model, str(data / "imagesTr"), tmp_path / "masks", uncertainty=True, inference=exact)
    written = {Path(row.image).name.partition(".")[0]: row.quality for row in predicted.cases}
    network = load_segmenter(place / "run", device="cpu").network
    for case in ranking.cases:
        image = place / "data" / "imagesTr" / f"{case.case}.nii.gz"
        found = segment(read_volume(ImageFile(image)), network, P, uncertainty=True, sided=True)
        expected = pytest.approx(quality(found.agreement or ()), abs=5e-5)  # predict rounds it
        assert case.mirrored == expected
        assert written[case.case] == expected


def test_the_most_uncertain_case_comes_first(place: Path, tmp_path: Path) -> None:
    ranking = next_cases(str(place / "run"), str(place / "data"), tmp_path / "next", number=2)
    qualities = [case.quality for case in ranking.cases]
    assert sorted(case.case for case in ranking.cases) == ["b", "c", "d"]
    assert qualities == sorted(qualities)
    rows = list(csv.DictReader((tmp_path / "next" / "next.csv").open()))
    assert [row["case"] for row in rows] == [case.case for case in ranking.cases]
    card = json.loads((tmp_path / "next" / "next.json").read_text())
    assert card["cases"][0]["quality"] == qualities[0]
    pictures = sorted(file.name for file in (tmp_path / "next").glob("*.png"))
    assert pictures == [f"{i:03d}-{case.case}.png" for i, case in enumerate(ranking.cases[:2], 1)]


def test_prediction_and_baseline_are_compared_in_the_folder_of_a_run(place: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    random_segmenter(run / "model", P, labels=LABELS, width=4)
    random_segmenter(run / "baseline" / "model", P, labels=LABELS, width=4)
    ranking = next_cases(str(run), str(place / "data"), tmp_path / "next", pictures=False)
    # The same weights, so the same masks.
    assert [case.baseline for case in ranking.cases] == [1.0, 1.0, 1.0]
    for case in ranking.cases:
        assert case.mirrored is not None
        assert case.quality == pytest.approx((case.mirrored + 1) / 2)


def test_labels_are_never_opened(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    decathlon(data, ["a", "b", "c"])
    split = tmp_path / "split.json"
    write_split(split, Split(labelled=("a",), unlabelled=("b", "c")), open_dataset(data))
    for name in "abc":
        (data / "labelsTr" / f"{name}.nii.gz").write_bytes(b"not an image")
    ranking = next_cases(str(place / "run"), str(data), tmp_path / "next", split=split, pictures=False)
    assert sorted(case.case for case in ranking.cases) == ["b", "c"]


def test_a_damaged_volume_is_named_and_the_others_ranked(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    decathlon(data, ["a"], unlabelled=["b", "c"])
    damaged = data / "imagesTr" / "b.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    ranking = next_cases(str(place / "run"), str(data), tmp_path / "next", pictures=False)
    assert [case.case for case in ranking.cases] == ["c", "b"]
    assert ranking.cases[1].error
    assert "b: no prediction" in str(ranking)


def test_nothing_to_rank_is_said(place: Path, tmp_path: Path) -> None:
    decathlon(tmp_path / "data", ["a", "b"])
    with pytest.raises(UserError, match="all 2 cases have labels"):
        next_cases(str(place / "run"), str(tmp_path / "data"), tmp_path / "next")


def test_files_of_others_are_not_replaced(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "next"
    out.mkdir()
    (out / "next.csv").write_text("mine")
    words = ["next", str(place / "run"), str(place / "data"), str(out), "--pictures", "false"]
    assert main(words) == 1
    assert "next.csv already exists" in capsys.readouterr().err
    assert (out / "next.csv").read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    assert "3 unlabelled cases, most uncertain first" in capsys.readouterr().out
    assert main(words) == 0  # its own files are


def test_predict_writes_the_uncertainty_on_the_grid_of_the_image(place: Path, tmp_path: Path) -> None:
    image = place / "data" / "imagesTr" / "b.nii.gz"
    result = predict(str(place / "run"), str(image), tmp_path / "masks", uncertainty=True)
    found = nibabel.load(tmp_path / "masks" / "b_uncertainty.nii.gz")
    np.testing.assert_array_equal(found.affine, nibabel.load(image).affine)
    assert found.shape == SHAPE
    values = np.asarray(found.dataobj)
    assert values.min() >= 0
    assert 0 < values.max() <= 1
    case = json.loads((tmp_path / "masks" / "predictions.json").read_text())["cases"][0]
    assert case["quality"] == result.cases[0].quality
    assert set(case["agreement"]) == {"shell", "core"}


def test_names_of_cases_are_not_formulas_in_the_table(place: Path, tmp_path: Path) -> None:
    decathlon(tmp_path / "data", ["a"], unlabelled=["-b"])
    next_cases(str(place / "run"), str(tmp_path / "data"), tmp_path / "next", pictures=False)
    [row] = csv.DictReader((tmp_path / "next" / "next.csv").open())
    assert row["case"] == "'-b"


def test_without_its_split_file_a_run_knows_its_unlabelled_cases_by_their_content(place: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    decathlon(data, ["a", "b", "c"])
    shutil.copytree(place / "run", run)
    dataset = open_dataset(data)
    seen = {
        f"other-{case.name}": {"part": part, **fingerprint(case, label=False)}
        for case, part in zip(dataset.cases, ("labelled", "unlabelled", "unlabelled"), strict=True)
    }
    (run / "data.json").write_text(json.dumps({"cases": seen}))
    ranking = next_cases(str(run), str(data), tmp_path / "next", pictures=False)
    assert sorted(case.case for case in ranking.cases) == ["b", "c"]
    # A relative path in the configuration refers to the folder in which the run was started.
    (run / "data.json").unlink()
    write_split(tmp_path / "s.json", Split(labelled=("a",), validation=("b",), unlabelled=("c",)), dataset)
    (run / "config.yaml").write_text("split: s.json\n")
    ranking = next_cases(str(run), str(data), tmp_path / "next", pictures=False)
    assert [case.case for case in ranking.cases] == ["c"]


def test_cases_that_were_labelled_after_the_training_are_not_ranked_again(place: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    dataset = open_dataset(decathlon(data, ["a"], unlabelled=["b", "c", "d"]))
    shutil.copytree(place / "run", run)
    parts = Split(labelled=("a",), unlabelled=("b", "c", "d"))
    write_split(tmp_path / "split.json", parts, dataset)
    (run / "config.yaml").write_text(f"split: {tmp_path / 'split.json'}\n")
    (run / "data.json").write_text(json.dumps({"cases": identify(dataset, parts)}))
    decathlon(data, ["a"], unlabelled=["x", "c", "d"])  # b is renamed to x, and c receives a label
    shutil.move(data / "imagesTr" / "b.nii.gz", data / "imagesTr" / "x.nii.gz")
    listed = json.loads((data / "dataset.json").read_text())
    save_case(data, "c", number=2)
    listed["training"].append({"image": "imagesTr/c.nii.gz", "label": "labelsTr/c.nii.gz"})
    listed["unlabeled"].remove("./imagesTr/c.nii.gz")
    (data / "dataset.json").write_text(json.dumps(listed))
    ranking = next_cases(str(run), str(data), tmp_path / "next", pictures=False)
    assert sorted(case.case for case in ranking.cases) == ["d", "x"]
    assert ranking.left_out == ("c",)
    assert "1 case with a label is left out: c" in str(ranking)


def test_names_of_another_data_set_are_not_those_of_the_split(place: Path, tmp_path: Path) -> None:
    run, names = tmp_path / "run", ["a", "b", "c", "d"]
    dataset = open_dataset(decathlon(tmp_path / "data", ["a", "b"], unlabelled=["c", "d"]))
    shutil.copytree(place / "run", run)
    parts = Split(labelled=("a",), validation=("b",), unlabelled=("c", "d"))
    write_split(tmp_path / "split.json", parts, dataset)
    (run / "config.yaml").write_text(f"split: {tmp_path / 'split.json'}\n")
    (run / "data.json").write_text(json.dumps({"cases": identify(dataset, parts)}))

    def ranked(folder: str, stored: dict[str, int]) -> list[str]:
        """Rank images of these numbers, under other names."""
        decathlon(tmp_path / folder, [], unlabelled=list(stored))
        for name, number in stored.items():
            save_case(tmp_path / folder, name, number=number, labelled=False)
        found = next_cases(str(run), str(tmp_path / folder), tmp_path / f"next-{folder}", pictures=False)
        return sorted(case.case for case in found.cases)

    same = next_cases(str(run), str(tmp_path / "data"), tmp_path / "next", pictures=False)
    assert sorted(case.case for case in same.cases) == ["c", "d"]
    assert ranked("renamed", dict(zip("dcxa", range(4), strict=True))) == ["a", "x"]
    assert ranked("another", dict(zip(names, range(10, 14), strict=True))) == names
    assert ranked("mixed", {"a": 10, "b": 0, "c": 1, "d": 11}) == ["a", "d"]
