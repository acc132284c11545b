"""`tools/gpu`: the CPU rehearsal runs every stage except those left out; failures and time limits are recorded."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from ssl_video.data.synthetic import make_videos
from ssl_video.data.videos import SUFFIXES
from tools.gpu import pack, publish, run
from tools.results import provenance, validate

ROOT = Path(__file__).parents[2]


def call(tmp_path: Path, *arguments: object, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "tools.gpu.run",
        "--rehearse",
        "--out",
        tmp_path / "out",
        "--work",
        tmp_path / "work",
    ]
    words = list(map(str, [*command, *arguments]))
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout)


def make_data(folder: Path) -> None:
    """Images of two classes, two-frame volumes of six patients with three structures, and videos of four classes."""
    clips = folder / "videos"
    make_videos(clips, per_class=4)
    listed = [(path, path.parent.name) for path in sorted(clips.rglob("*.*")) if path.suffix in SUFFIXES]
    with (clips / "clips.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "class", "label"])
        rows.writerows([path.relative_to(clips), label, 0] for path, label in listed)
    pack.pack_clips(clips, folder, 4)
    with tarfile.open(folder / "clips.tar") as archive:
        archive.extractall(folder / "clips", filter="data")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("airplane", "bird"):
            place = folder / "cifar10" / split / label
            place.mkdir(parents=True)
            for i in range(8):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(place / f"{i}.jpg")
    acdc = folder / "acdc"
    for part in ("imagesTr", "labelsTr"):
        (acdc / part).mkdir(parents=True)
    names = [f"patient{i:03d}_frame{frame:02d}" for i in range(1, 7) for frame in (1, 2)]
    y, x = np.mgrid[:32, :32]
    for name in names:
        distance = np.hypot(y - 15 - rng.normal(), x - 15 - rng.normal())
        label = np.select([distance < 4, distance < 7, distance < 10], [3, 2, 1], 0).astype(np.uint8)
        volume = np.repeat(label[..., None], 3, 2)
        image = (60 * volume + rng.integers(0, 40, volume.shape)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), acdc / "imagesTr" / f"{name}.nii")
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), acdc / "labelsTr" / f"{name}.nii")
    files = [{"image": f"./imagesTr/{name}.nii", "label": f"./labelsTr/{name}.nii"} for name in names]
    labels = {"0": "background", "1": "RV", "2": "myocardium", "3": "LV"}
    (acdc / "dataset.json").write_text(
        json.dumps({"name": "ACDC", "labels": labels, "modality": {"0": "MRI"}, "numTraining": 12, "training": files})
    )
    with (acdc / "split.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "patient", "split"])
        rows.writerows([name, name[:10], "val" if name < "patient002" else "train"] for name in names)


@pytest.mark.timeout(900)  # half a minute on an idle machine
def test_rehearsal_runs_every_stage(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    done = call(tmp_path, "--data", tmp_path / "data", timeout=850)
    log = tmp_path / "out" / "log.txt"
    assert done.returncode == 0, f"{done.stdout}{done.stderr}{log.read_text() if log.is_file() else ''}"
    stages = json.loads((tmp_path / "out" / "gpu.json").read_text())["stages"]
    assert set(stages) == {"accuracy", "losses", "simclr", "suncet", "acdc", "mvpl", "profile"}
    assert stages["accuracy"]["results"]["accuracy.json"]["worst"]["float32"]["failed"] == 0
    assert stages["simclr"]["results"]["network.json"]["share_outside_network"] < 1
    simclr, suncet = stages["suncet"]["results"]["linear.json"].values()
    assert [point["steps"] for point in simclr] == [0, 2, 4]
    assert [point["images"] for point in simclr] == [0, 32, 64]
    assert [point["images"] for point in suncet] == [0, 64]
    assert stages["mvpl"]["results"]["mvpl.json"]["clips"] == {"labelled": 8, "unlabelled": 12, "test": 4}
    rows = stages["acdc"]["results"]["acdc_strong.json"]["table"]["rows"]
    assert [row[1].partition(",")[0] for row in rows] == ["labels alone", "consistency"]
    assert stages["profile"]["results"]["kernels.json"]["simclr"]
    with tarfile.open(tmp_path / "out" / "runs.tar.gz") as archive:
        names = archive.getnames()
    assert "simclr/run/metrics.jsonl" in names
    assert not [name for name in names if name.endswith(".safetensors")]


def test_a_stage_that_fails_or_takes_too_long_stops_no_other(tmp_path: Path) -> None:
    file = tmp_path / "stages.yaml"
    write = "import sys; open(sys.argv[1], 'w').write('[1]')"
    file.write_text(
        json.dumps(
            [
                {"name": "broken", "group": 0, "seconds": 20, "commands": [["{python}", "-c", "exit(3)"], ["never"]]},
                {"name": "absent", "group": 0, "seconds": 9, "commands": [["there-is-no-such-program"]]},
                {"name": "slow", "group": 0, "seconds": 0.3, "commands": [["sleep", "60"]]},
                {
                    "name": "collected",
                    "group": 0,
                    "seconds": 4,
                    "last": 3.9,
                    "commands": [
                        ["sleep", "60"],
                        ["never"],
                        ["{python}", "-c", write, "{work}/b.json"],
                    ],
                },
                {"name": "good", "group": 1, "seconds": 20, "commands": [["{python}", "-c", write, "{work}/a.json"]]},
                {"name": "gpu", "group": 1, "seconds": 20, "commands": [["never"]], "rehearse": None},
            ]
        )
    )
    done = call(tmp_path, "--file", file)
    assert done.returncode == 1
    assert "failed: broken, absent, slow, collected" in done.stderr
    stages = json.loads((tmp_path / "out" / "gpu.json").read_text())["stages"]
    assert [command["status"] for command in stages["broken"]["commands"]] == [3]
    assert "did not start: [Errno 2]" in stages["absent"]["commands"][0]["status"]
    assert stages["slow"]["commands"][0]["status"] == "out of time"
    assert [command["status"] for command in stages["collected"]["commands"]] == ["out of time", 0]
    assert stages["collected"]["results"] == {"b.json": [1]}
    assert stages["good"]["results"] == {"a.json": [1]}
    assert "gpu" not in stages
    assert "$ sleep 60" in (tmp_path / "out" / "log.txt").read_text()


def test_stages_of_the_file_are_known_and_flags_reach_the_segmentation(tmp_path: Path) -> None:
    stages = run.read_stages(run.STAGES, ["acdc"], rehearse=False)
    assert [stage.name for stage in stages] == ["acdc"]
    session = run.Session(tmp_path, tmp_path, device="cpu", data=tmp_path, budget=1)
    session.more = {"{acdc}": ["--method", "pseudo"]}
    assert session._expand(["run", "{acdc}", "last"]) == ["run", "--method", "pseudo", "last"]
    with pytest.raises(SystemExit, match=r"no stage nothing; .* has .*acdc"):
        run.read_stages(run.STAGES, ["nothing"], rehearse=False)


def test_packed_volumes_are_small_and_their_labels_keep_their_classes(tmp_path: Path) -> None:
    source, into = tmp_path / "acdc", tmp_path / "packed"
    for part, volume in (
        ("imagesTr", np.arange(256 * 300 * 2).reshape(256, 300, 2) % 1024),
        ("labelsTr", np.ones((256, 300, 2)) * 3),
    ):
        (source / part).mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4)), source / part / "a.nii.gz")
    files = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    (source / "dataset.json").write_text(json.dumps({"training": files}))
    (source / "split.csv").write_text("case,patient,split\n")
    into.mkdir()
    pack.pack_acdc(source, into)
    with tarfile.open(into / "acdc.tar.xz") as archive:
        archive.extractall(tmp_path / "out", filter="data")
    image = nibabel.load(tmp_path / "out" / "imagesTr" / "a.nii")
    assert image.shape == (164, 192, 2)
    assert image.get_data_dtype() == np.uint8
    assert set(np.unique(nibabel.load(tmp_path / "out" / "labelsTr" / "a.nii").dataobj)) == {3}
    listing = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert listing["training"] == [{"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"}]


def test_results_of_a_run_become_files_of_the_pages(tmp_path: Path) -> None:
    network = {"batch": 512, "run_images_per_second": 9e3, "images_per_second": 1e4, "share_outside_network": 0.1}
    kernels = {"nt_xent": [{"kernel": "all | of them", "us": 12.3, "calls": 4}]}
    stages = {
        "prepare": {"provenance": {"said": f"a warning\n{json.dumps(provenance())}\n"}},
        "simclr": {"commands": [{"line": "-m x", "status": 0}], "results": {"network.json": network}},
        "profile": {"commands": [{"line": "-m y", "status": 0}], "results": {"kernels.json": kernels}},
        "mvpl": {"commands": [{"line": "-m z", "status": "out of time"}], "results": {}},
        "suncet": {"commands": [], "results": {"linear.json": "not JSON"}},
    }
    written = publish.publish({"stages": stages}, tmp_path)
    assert [path.name for path in written] == ["gpu_simclr.json", "gpu_profile.json"]
    assert not [problem for path in written for problem in validate(path)]
    assert json.loads(written[0].read_text())["table"]["rows"] == [[512, 9000, 10000, 10.0]]
