"""The `run` command: splits from labels, stages, resumption."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import yaml
from nibabel.processing import resample_from_to, resample_to_output

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions, config
from contrastive_core.training.recorder import read
from ssl_medseg import predict
from ssl_medseg.cli import main
from ssl_medseg.commands import run as module
from ssl_medseg.commands.report import report
from ssl_medseg.commands.run import run
from ssl_medseg.datasets import Split, open_dataset, read_split, write_split
from ssl_medseg.datasets.draw_splits import split_by_labels
from ssl_medseg.models import NetworkOptions
from ssl_medseg.models.model_folder import load_segmenter
from ssl_medseg.phantom import write_phantom
from ssl_medseg.prediction import InferenceOptions
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.selftraining.options import PseudoLabelOptions
from ssl_medseg.selftraining.rounds import read_rounds
from ssl_medseg.training.optim import DurationEstimate
from tests.medseg.grouped import grouped
from tests.medseg.volumes_on_disk import write_nifti

RUN = RunOptions(device="cpu", threads=1, checkpoint_every=2, progress=False)
SHORT: dict[str, Any] = {
    "method": "rounds", "baseline_steps": 4, "rounds": 2, "steps": 2, "batch_size": 4, "unlabelled_batch": 4,
    "validate_every": 2, "baseline_floor": 0.0,
    "network": NetworkOptions("unet", 2), "preprocessing": PreprocessingOptions(image_size=32),
    "pseudo": PseudoLabelOptions(guard="off"), "run": RUN,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients, two of them labelled."""
    folder = tmp_path_factory.mktemp("phantom") / "data"
    write_phantom(folder, patients=6, frames=1, labelled=2, size=64)
    return folder


def test_from_a_folder_to_a_segmenter(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    folder = run(str(data), out, **grouped(**SHORT))
    assert folder == out / "model"
    dataset = open_dataset(data)
    split = read_split(out / "split.json", dataset)
    patients = list(dataset.patients)
    assert {dataset.case(name).patient for name in split.labelled} == set(patients[:2])
    assert {dataset.case(name).patient for name in split.unlabelled} == set(patients[2:])
    assert len(read_rounds(out / "selftrain")) == 2
    assert load_segmenter(folder, device="cpu").details["method"] == "selftrain rounds"
    assert (out / "model" / "model.safetensors").read_bytes() == (
        out / "selftrain" / "model" / "model.safetensors"
    ).read_bytes()
    stages = {name: yaml.safe_load((out / name / "config.yaml").read_text()) for name in ("baseline", "selftrain")}
    # The files state the orientation, so slices are not turned.
    assert [stages[name]["augment"]["turn"] for name in stages] == [0, 0]
    assert stages["selftrain"]["selftraining"]["unlabelled_augment"]["turn"] == 0
    with pytest.raises(UserError, match="is not empty; pass --resume to continue the run in it"):
        run(str(data), out, **grouped(**SHORT))
    with pytest.raises(UserError, match=r"(?s)other settings:.*rounds: 2 -> 3"):
        run(str(data), out, **grouped(**{**SHORT, "rounds": 3, "run": RunOptions(**{**vars(RUN), "resume": True})}))
    stated = (out / "config.yaml").read_bytes()
    half = len(split.labelled) // 2
    other = replace(split, labelled=split.labelled[:half], validation=split.labelled[half:])
    write_split(tmp_path / "other.json", other, dataset)
    again = {**SHORT, "split": tmp_path / "other.json", "run": RunOptions(**{**vars(RUN), "resume": True})}
    with pytest.raises(UserError, match="started with other labelled cases than those of the split"):
        run(str(data), out, **grouped(**again))
    assert (out / "config.yaml").read_bytes() == stated


def test_a_start_that_failed_before_training_leaves_nothing_in_the_way(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(UserError, match="no patient 'nobody'"):
        run(str(data), out, labelled=("nobody",), **grouped(**SHORT))
    patients = list(open_dataset(data).patients)

    def fail(*words: Any, **named: Any) -> None:
        raise UserError("the volumes cannot be prepared")

    with monkeypatch.context() as patched:
        patched.setattr(module, "open_training_data", fail)
        with pytest.raises(UserError, match="cannot be prepared"):
            run(str(data), out, labelled=tuple(patients[:2]), **grouped(**SHORT))
    assert sorted(path.name for path in out.iterdir() if path.suffix) == [".outputs.json", "config.yaml", "split.json"]
    run(str(data), out, labelled=(patients[1],), **grouped(**{**SHORT, "rounds": 1}))
    split = read_split(out / "split.json", open_dataset(data))
    assert split.labelled == open_dataset(data).patients[patients[1]]
    assert config.read(out / "config.yaml")["selftraining"]["rounds"] == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not empty \(it contains notes.txt\)"):
        run(str(data), tmp_path / "other", **grouped(**SHORT))


def test_a_stopped_run_goes_on_where_it_was(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(str(data), tmp_path / "whole", **grouped(**SHORT))

    def stop(*words: Any, **named: Any) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "selftrain", stop)
        with pytest.raises(KeyboardInterrupt):
            run(str(data), tmp_path / "part", **grouped(**SHORT))
    monkeypatch.setattr(module, "train", stop)  # it is done, and must not begin again
    run(str(data), tmp_path / "part", **grouped(**{**SHORT, "run": RunOptions(**{**vars(RUN), "resume": True})}))
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "part")]
    assert models[0] == models[1]


def test_a_run_goes_on_in_its_precision_on_another_machine(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*words: Any, **named: Any) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    with monkeypatch.context() as patched:
        patched.setattr(module, "selftrain", stop)
        with pytest.raises(KeyboardInterrupt):
            run(str(data), tmp_path, **grouped(**{**SHORT, "run": replace(RUN, precision="auto")}))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    main(["run", "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path), "--resume"])
    for folder in (tmp_path, tmp_path / "baseline", tmp_path / "selftrain"):
        assert config.read(folder / "config.yaml")["run"]["precision"] == "bf16-mixed"


def test_splits_by_labels(data: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "all", patients=6, frames=2, size=64)
    everyone = open_dataset(tmp_path / "all")
    patients = list(everyone.patients)
    with pytest.raises(UserError, match=r"every patient has labels, .* name the labelled patients with --labelled"):
        split_by_labels(everyone)
    split, reasons = split_by_labels(everyone, labelled=patients[1:2], validation=patients[3:4])
    assert (split.labelled, split.validation) == (everyone.patients[patients[1]], everyone.patients[patients[3]])
    assert len(split.unlabelled) == 8
    assert reasons[0] == f"labelled: {patients[1]}"
    write_phantom(tmp_path / "most", patients=6, frames=1, labelled=5, size=64)
    most = open_dataset(tmp_path / "most")
    split, reasons = split_by_labels(most)
    assert [len(part) for part in (split.labelled, split.validation, split.test, split.unlabelled)] == [4, 1, 0, 1]
    assert "used to score the training" in reasons[1]
    assert "the last step is kept" in split_by_labels(open_dataset(data))[1][1]
    with pytest.raises(UserError, match=r"no patient 'nobody' outside its test part; its patients are"):
        split_by_labels(most, labelled=["nobody"])


def test_an_unlabelled_volume_that_cannot_be_used_stops_it_before_training(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    [last] = [case for case in dataset.cases if case.patient == list(dataset.patients)[-1]]
    assert last.label is None
    opened = nibabel.load(last.image.path)
    nibabel.save(nibabel.Nifti1Image(np.full(opened.shape, 7.0), opened.affine), last.image.path)
    with pytest.raises(UserError, match=rf"{last.name}.*all voxels are 7: the image is empty"):
        run(str(tmp_path / "data"), tmp_path / "run", **grouped(**SHORT))
    assert not (tmp_path / "run" / "baseline").exists()


def test_a_baseline_that_finds_nothing_stops_the_run_with_a_picture(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_phantom(tmp_path / "data", patients=5, frames=1, labelled=3, size=64)
    dataset = open_dataset(tmp_path / "data")
    cases = [case.name for case in dataset.cases]
    write_split(
        tmp_path / "split.json", Split(tuple(cases[:2]), validation=(cases[2],), unlabelled=tuple(cases[3:])), dataset
    )
    untaught = {**SHORT, "lr": 1e-9, "split": tmp_path / "split.json", "baseline_floor": 0.1}
    with pytest.raises(
        UserError,
        match=r"(?s)the baseline (never finds|has a mean Dice) .* on 1 validation case \(.*--baseline-floor 0",
    ) as caught:
        run(str(tmp_path / "data"), tmp_path / "run", **grouped(**untaught))
    (picture,) = re.findall(r"Look at (\S+\.png),", str(caught.value))
    assert Path(picture).is_file()
    page = report(tmp_path / "run").read_text()
    assert "Self-training has not been run: the run stopped because its baseline failed." in page
    assert "Label one more patient" in page
    assert "ssl-medseg next" not in page
    assert not (tmp_path / "run" / "selftrain").exists()
    resumed = RunOptions(**{**vars(RUN), "resume": True})
    run(str(tmp_path / "data"), tmp_path / "run", **grouped(**{**untaught, "baseline_floor": 0.0, "run": resumed}))
    assert (tmp_path / "run" / "model" / "model.json").is_file()


def test_without_validation_cases_the_baseline_is_judged_by_the_labelled_ones(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)labelled cases that it was trained with.*--baseline-floor 0 --resume"):
        run(str(data), tmp_path / "run", **grouped(**{**SHORT, "lr": 1e-9, "baseline_floor": 0.1}))
    assert list((tmp_path / "run" / "baseline" / "evaluation").glob("labelled-*.png"))
    assert not (tmp_path / "run" / "selftrain").exists()
    assert "Training used the labels of these cases" in report(tmp_path / "run").read_text()


def test_a_baseline_is_not_judged_by_healthy_patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any structure in their labels, the best Dice is that of an empty prediction, which has none."""
    write_phantom(tmp_path / "data", patients=4, frames=1, labelled=3, size=64)
    dataset = open_dataset(tmp_path / "data")
    *labelled, healthy, unlabelled = dataset.cases
    assert healthy.label is not None
    opened = nibabel.load(healthy.label)
    nibabel.save(nibabel.Nifti1Image(np.zeros(opened.shape, np.uint8), opened.affine), healthy.label)
    names = tuple(case.name for case in labelled)
    split = Split(names, validation=(healthy.name,), unlabelled=(unlabelled.name,))
    write_split(tmp_path / "split.json", split, dataset)
    options = {**SHORT, "split": tmp_path / "split.json", "baseline_floor": 0.1}
    with pytest.raises(UserError, match=r"on 2 labelled cases that it was trained with"):
        run(str(tmp_path / "data"), tmp_path / "failed", **grouped(**{**options, "lr": 1e-9}))
    assert "the run stopped because its baseline failed" in report(tmp_path / "failed").read_text()
    # Of the labelled cases, whatever they are, a Dice above 0 is enough here.
    monkeypatch.setattr(module, "never_found", lambda summary: ())
    run(str(tmp_path / "data"), tmp_path / "run", **grouped(**{**options, "baseline_floor": 1e-9}))
    assert (tmp_path / "run" / "model" / "model.json").is_file()


def test_a_run_that_is_stopped_in_a_stage_is_resumed_as_a_whole(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def stop(*words: Any, **named: Any) -> Path:
        with Run(tmp_path / "x", config={}, command="ssl-medseg train", options=RUN) as stage:
            told.append(stage.resume_command)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        run(str(data), tmp_path / "run", **grouped(**SHORT))
    out = tmp_path / "run"
    assert told == [f"ssl-medseg run --config {out / 'config.yaml'} --out {out} --resume"]
    with pytest.raises(KeyboardInterrupt):
        stop()
    assert "ssl-medseg train" in told[1]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_command_printed_by_a_stop_in_any_stage_resumes_the_run(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    signum: int,
) -> None:
    flags = [
        "--baseline-steps", "3", "--steps", "2", "--batch-size", "4", "--network.width", "2", "--image-size", "32",
        "--baseline-floor", "0.0001", "--guard", "off", "--device", "cpu", "--threads", "1", "--progress", "false",
    ]  # fmt: skip
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    # Something is found after any training, so that the check of the baseline takes place and passes.
    monkeypatch.setattr(module, "never_found", lambda summary: ())
    monkeypatch.setattr(module, "check_baseline", lambda *words, **named: None)
    assert main(["run", str(data), str(tmp_path / "whole"), *flags]) == 0
    words = ["run", str(data), str(tmp_path / "part"), *flags]
    places: list[tuple[Any, str]] = [
        (module, "open_training_data"), (module, "train"), (DurationEstimate, "after"), (module, "check_baseline"),
        (module, "selftrain"), (DurationEstimate, "after"), (module, "_take_model"),
    ]  # fmt: skip
    for place, name in places:
        sent: list[int] = []

        def stop(*words: Any, sent: list[int] = sent, **named: Any) -> None:
            if not sent:  # in the steps of a run, the signal takes effect after the step
                sent.append(signum)
                os.kill(os.getpid(), signum)

        capsys.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(place, name, stop)
            assert main(words) == 128 + signum
        said = capsys.readouterr().err
        assert said.count("Resume with") == 1
        line = said.split("Resume with\n  ")[1].strip()
        assert line.startswith("ssl-medseg run ")
        assert line.endswith(" --resume")
        words = shlex.split(line)[1:]
    assert main(words) == 0
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "part")]
    assert models[0] == models[1]


def test_a_second_run_does_not_replace_the_split_of_one_that_prepares_its_volumes(data: Path, tmp_path: Path) -> None:
    out, code = tmp_path / "run", "import sys; from pathlib import Path; from contrastive_core.training import files; "
    out.mkdir()
    code += "print(files.FolderLock(Path(sys.argv[1])).acquire(), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        with pytest.raises(UserError, match="is being written by another process; wait for it to end, or stop it"):
            run(str(data), out, **grouped(**SHORT))
        other.communicate()
    assert not (out / "split.json").exists()


def test_contradictions_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"got both the split x\.json and names of patients"):
        run(str(data), tmp_path / "run", **grouped(split=Path("x.json"), labelled=("a",)))


@pytest.mark.slow
def test_two_processes_make_one_run(data: Path, tmp_path: Path) -> None:
    arguments = [
        "run", str(data), "--baseline-steps", "6", "--baseline-floor", "0",
        "--method", "rounds", "--rounds", "2", "--steps", "4",
        "--batch_size", "4", "--unlabelled_batch", "4", "--validate_every", "2", "--network.width", "2",
        "--image-size", "32", "--guard", "off",
        "--progress", "false", "--checkpoint_every", "2", "--log_every", "1", "--device", "cpu", "--threads", "1",
    ]  # fmt: skip
    alone, together = tmp_path / "one", tmp_path / "two"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for out, start in ((alone, [sys.executable]), (together, torchrun)):
        command = [*start, "-m", "ssl_medseg", *arguments, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (together / "split.json").read_bytes() == (alone / "split.json").read_bytes()
    sessions = (together / "selftrain" / "timing.jsonl").read_text()
    assert '"processes": 2' in sessions
    losses = [[r["loss"] for r in read(out / "baseline" / "metrics.jsonl")] for out in (alone, together)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    assert len(read_rounds(together / "selftrain")) == 2
    model = (together / "model" / "model.safetensors").read_bytes()
    assert model == (together / "selftrain" / "model" / "model.safetensors").read_bytes()
    # What is done is not done again, by either process; a later stage that was lost is made anew.
    shutil.rmtree(together / "selftrain")
    shutil.rmtree(together / "model")
    before = (together / "baseline" / "metrics.jsonl").stat().st_mtime_ns
    command = [*torchrun, "-m", "ssl_medseg", *arguments, "--out", str(together)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "pass --resume to continue the run in it" in refused.stderr
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (together / "model" / "model.safetensors").read_bytes() == model
    assert (together / "baseline" / "metrics.jsonl").stat().st_mtime_ns == before


def test_labels_of_unlabelled_patients_may_be_missing(tmp_path: Path) -> None:
    """As documented; `run --split` used to ask for label files of patients that the split calls unlabelled."""
    write_phantom(tmp_path / "data", patients=6, frames=1, labelled=6, size=64)
    dataset = open_dataset(tmp_path / "data")
    names = list(dataset.names)
    write_split(tmp_path / "split.json", Split(tuple(names[:2]), unlabelled=tuple(names[2:])), dataset)
    for case in dataset.select(names[2:]):
        assert case.label is not None
        case.label.unlink()
    settings: dict[str, Any] = {**SHORT, "rounds": 1, "baseline_steps": 1, "steps": 1}
    folder = run(str(tmp_path / "data"), tmp_path / "run", **grouped(split=tmp_path / "split.json", **settings))
    assert load_segmenter(folder, device="cpu").details["method"] == "selftrain rounds"
    next(iter(dataset.select(names[:1]))).label.unlink()  # type: ignore[union-attr]
    with pytest.raises(UserError, match="has no label for it"):
        run(str(tmp_path / "data"), tmp_path / "other", **grouped(split=tmp_path / "split.json", **settings))


STORED = ("LPS", "RAS", "SRA", "PIL")


def isotropic(root: Path, shared_data: Path, storages: tuple[str, ...]) -> Path:
    """Prostate volumes resampled to 3 mm along every axis, each stored in its own orientation."""
    for number, letters in enumerate(storages):
        image, label = (
            nibabel.load(shared_data / f"prostate/{folder}/Case{number:02}.nii.gz")
            for folder in ("imagesTr", "labelsTr")
        )
        fine = resample_to_output(nibabel.Nifti1Image(image.get_fdata(), image.affine), (3.0, 3.0, 3.0), order=1)
        drawn = resample_from_to(nibabel.Nifti1Image(np.asarray(label.dataobj), label.affine), fine, order=0)
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(fine.affine), nibabel.orientations.axcodes2ornt(letters)
        )
        for folder, each, kind in (("imagesTr", fine, np.int16), ("labelsTr", drawn, np.uint8)):
            turned = nibabel.Nifti1Image(np.rint(each.get_fdata()).astype(kind), each.affine).as_reoriented(turn)
            (root / folder).mkdir(parents=True, exist_ok=True)
            write_nifti(root / folder / f"p{number}.nii.gz", np.ascontiguousarray(turned.dataobj), turned.affine)
    entries = [{"image": f"imagesTr/p{n}.nii.gz", "label": f"labelsTr/p{n}.nii.gz"} for n in range(len(storages))]
    content = {"name": "prostate", "labels": {"0": "background", "1": "pz", "2": "tz"}, "training": entries}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.mark.slow
def test_a_run_on_isotropic_volumes_is_the_same_however_they_are_stored(shared_data: Path, tmp_path: Path) -> None:
    outcomes = {}
    for kind, storages in {"one": ("LPS",) * 4, "mixed": STORED}.items():
        data = isotropic(tmp_path / kind, shared_data, storages)
        split = tmp_path / f"{kind}.json"
        write_split(split, Split(labelled=("p0",), validation=("p1",), unlabelled=("p2", "p3")), open_dataset(data))
        out = tmp_path / f"run-{kind}"
        few = {
            "network": NetworkOptions("plain-unet", 4),
            "baseline_steps": 5,
            "steps": 3,
            "batch_size": 4,
            "baseline_floor": 0.0,
        }
        run(str(data), out, **grouped(split=split, effort="minutes", run=RUN, **few))
        predict(str(out), str(data / "imagesTr"), tmp_path / f"masks-{kind}", inference=InferenceOptions(device="cpu"))
        masks = []
        for number in range(4):
            image, mask = (
                nibabel.load(folder / f"p{number}.nii.gz") for folder in (data / "imagesTr", tmp_path / f"masks-{kind}")
            )
            np.testing.assert_array_equal(mask.affine, image.affine)
            masks.append(np.asarray(nibabel.as_closest_canonical(mask).dataobj))
        weights = [(out / stage / "model" / "model.safetensors").read_bytes() for stage in ("baseline", "selftrain")]
        outcomes[kind] = weights, masks
    assert outcomes["one"][0] == outcomes["mixed"][0]
    for first, second in zip(outcomes["one"][1], outcomes["mixed"][1], strict=True):
        np.testing.assert_array_equal(first, second)
    # A model of one storage gives the same masks of the other.
    predict(
        str(tmp_path / "run-one"),
        str(tmp_path / "mixed" / "imagesTr"),
        tmp_path / "across",
        inference=InferenceOptions(device="cpu"),
    )
    for number, expected in enumerate(outcomes["one"][1]):
        mask = nibabel.as_closest_canonical(nibabel.load(tmp_path / "across" / f"p{number}.nii.gz"))
        np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)


def test_a_run_goes_on_after_its_folder_and_its_data_have_moved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data, tmp_path / "data")

    def stop(self: DurationEstimate, *words: Any, **named: Any) -> None:
        if (tmp_path / "run" / "selftrain").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DurationEstimate, "after", stop)
        with pytest.raises(KeyboardInterrupt):
            run(str(tmp_path / "data"), tmp_path / "run", **grouped(**SHORT))
    (tmp_path / "there").mkdir()
    for name in ("data", "run"):
        (tmp_path / name).rename(tmp_path / "there" / name)
    resumed = RunOptions(**{**vars(RUN), "resume": True})
    run(str(tmp_path / "there/data"), tmp_path / "there/run", **grouped(**{**SHORT, "run": resumed}))
    assert (tmp_path / "there/run/model/model.safetensors").is_file()
