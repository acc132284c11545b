"""The commands of tutorial and README are run: on the tutorial's hearts and on real prostates."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ssl_medseg.evaluation import read_evaluation
from tests.page_commands import commands_of, run_all
from tools.results import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a few minutes where nothing else runs
def test_the_tutorial_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "ssl-medseg" / "tutorial.md").read_text(encoding="utf-8")
    run_all(commands_of(page, "ssl-medseg"), tmp_path)
    run = tmp_path / "runs" / "hearts"
    assert (run / "report.html").stat().st_size > 100_000
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 22
    scores = read_evaluation(run / "evaluation" / "Phantom-test.json")
    assert len(scores.cases) == 8
    found = [score.dice for case in scores.cases for score in case.structures if score.structure == "LV"]
    assert np.mean([dice for dice in found if dice is not None]) > 0.5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readme_runs_on_prostates(shared_data: Path, tmp_path: Path) -> None:
    readme = (ROOT / "packages" / "ssl-medseg" / "README.md").read_text(encoding="utf-8")
    walk = readme[readme.index("## Example: from a folder to masks") : readme.index("## Commands")]
    data = shared_data / "prostate"
    (tmp_path / "new-images").mkdir()
    images = sorted((data / "imagesTr").glob("*.nii.gz"))[:2]
    for image in images:
        (tmp_path / "new-images" / image.name).symlink_to(image)
    (tmp_path / "DATA").symlink_to(data)
    long, short = "--effort minutes", "--effort minutes --baseline-steps 12 --baseline-floor 0 --steps 8"
    # The commands of the page, but for the length; so short a baseline finds little.
    assert long in walk
    walk = walk.replace(long, short)
    run_all(commands_of(walk, "ssl-medseg"), tmp_path)
    for image in images:
        mask, source = nib.load(tmp_path / "masks" / image.name), nib.load(image)
        assert mask.shape == source.shape[:3]
        np.testing.assert_array_equal(mask.affine, source.affine)
        assert (tmp_path / "masks" / image.name.replace(".nii.gz", ".png")).stat().st_size > 10_000
    file = tmp_path / "runs" / "a" / "evaluation" / "Prostate-test.json"
    assert len(json.loads(file.read_text())["cases"]) == 3
    assert (tmp_path / "runs" / "a" / "report.html").stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_mask_is_corrected_and_trained_on(shared_data: Path, tmp_path: Path) -> None:
    """The page's commands as they stand, but for the length of training; a script corrects the mask."""
    page = (ROOT / "docs" / "ssl-medseg" / "correct-a-mask.md").read_text(encoding="utf-8")
    data, source = tmp_path / "DATA", shared_data / "prostate"
    (data / "labelsTr").mkdir(parents=True)
    (data / "imagesTr").symlink_to(source / "imagesTr")
    content = json.loads((source / "dataset.json").read_text())
    content["unlabeled"] = [e["image"] for e in content["training"] if "Case07" in e["image"]]
    content["training"] = [e for e in content["training"] if "Case07" not in e["image"]]
    content["numTraining"] = len(content["training"])
    (data / "dataset.json").write_text(json.dumps(content))
    for entry in content["training"]:
        (data / entry["label"]).symlink_to(source / entry["label"])
    short = "--effort minutes --baseline-steps 12 --baseline-floor 0 --steps 8"
    first = f"```sh\nssl-medseg run DATA runs/a --labelled Case00 --validation Case06 {short}\n```\n"
    run_all(commands_of(first, "ssl-medseg"), tmp_path)
    commands = commands_of(page, "ssl-medseg")
    after = next(i for i, command in enumerate(commands) if "check" in command)
    (tmp_path / "to-correct").mkdir()
    (tmp_path / "to-correct" / "Case07.nii.gz").symlink_to(source / "imagesTr" / "Case07.nii.gz")
    run_all(commands[:after], tmp_path)
    mask = nib.load(tmp_path / "masks" / "Case07.nii.gz")
    corrected = np.asarray(nib.load(source / "labelsTr" / "Case07.nii.gz").dataobj).astype(np.uint8)
    nib.save(nib.Nifti1Image(corrected, mask.affine), data / "labelsTr" / "Case07.nii.gz")
    content["training"].append({"image": content["unlabeled"].pop(), "label": "labelsTr/Case07.nii.gz"})
    content["numTraining"] += 1
    (data / "dataset.json").write_text(json.dumps(content))
    run_all([[*c, *short.split()] if "run" in c else c for c in commands[after:]], tmp_path)
    split = json.loads((tmp_path / "splits-2" / "corrected.json").read_text())
    assert ["Case07", "Case07"] in split["labelled"]
    scores = read_evaluation(tmp_path / "runs" / "b" / "evaluation" / "Prostate-test.json")
    assert sorted(case.case for case in scores.cases) == ["Case04", "Case05", "Case09"]
