"""Training and testing by commands: what is learned, what is never opened, and that runs are reproducible."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions
from ssl_video import TrainingReadOptions
from ssl_video.augment import ClipAugment, StrongOptions
from ssl_video.cli import main
from ssl_video.commands.demo import demo
from ssl_video.commands.evaluate import evaluate
from ssl_video.commands.export import export
from ssl_video.commands.make_splits import LabelDrawOptions, make_splits
from ssl_video.commands.report import report
from ssl_video.commands.train import train
from ssl_video.data import ClipDataset, ClipSpec, index_video, read_clip
from ssl_video.data.clip import clip_starts
from ssl_video.data.splits import read_split
from ssl_video.evaluation import SamplingOptions, fused
from ssl_video.models import NetworkOptions
from ssl_video.models.model_folder import load_recognizer
from ssl_video.training.loader import Feed
from ssl_video.training.options import InputOptions, OptimizerOptions, PseudoOptions, TrainingOptions
from tests.pages import Page, assert_fits_a_phone

RECIPES = sorted(file.name.removesuffix(".yaml") for file in files("ssl_video.configs").iterdir())
CPU = RunOptions(device="cpu", threads=1, progress=False, log_every=1, checkpoint_every=3)
CLIP = ClipSpec(frames=3, stride=2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 3 classes with 6 clips each, 12 frames of 20 x 24 pixels, every class in its own colour, and a split."""
    import av

    root = tmp_path_factory.mktemp("videos")
    rows = ["path,class"]
    for label, name in enumerate(("blue", "green", "red")):
        for number in range(6):
            noise = np.random.default_rng(10 * label + number).integers(0, 90, (12, 20, 24, 3), dtype=np.uint8)
            noise[..., 2 - label] += 150
            path = f"{name}/{number}.mkv"
            (root / name).mkdir(exist_ok=True)
            with av.open(str(root / path), "w") as container:
                stream = container.add_stream("ffv1", rate=30)
                stream.width, stream.height, stream.pix_fmt = 24, 20, "bgr0"
                for picture in noise:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                container.mux(stream.encode(None))
            rows.append(f"{path},{name}")
    (root / "clips.csv").write_text("\n".join(rows) + "\n")
    make_splits(
        str(root / "clips.csv"),
        root,
        draw=LabelDrawOptions(fractions=(), per_class=(1,), draws=1, validation_fraction=0.16),
        blocks=6,
        test_fraction=0.33,
    )
    return root


def settings(root: Path, **changes: Any) -> dict[str, Any]:
    """Return the arguments of a short run; a change is an argument of `train` or a field of one of its groups."""
    made: dict[str, Any] = {
        "data": str(root / "clips.csv"),
        "split": root / "1each-draw0.json",
        "inputs": InputOptions(("rgb", "tg"), image_size=16),
        "clip": CLIP,
        "network": NetworkOptions("small_slow", width=4, dropout=0.2),
        "training": TrainingOptions(steps=6, batch_size=3, mu=2, recalibrate=6),
        "pseudo": changes.pop("pseudo", PseudoOptions(threshold=0.7, warmup=0.34)),
        "optimizer": OptimizerOptions(),
        "run": CPU,
    }
    for name, value in changes.items():
        group = next((key for key in ("inputs", "training", "pseudo", "optimizer") if hasattr(made[key], name)), None)
        made |= {name: value} if group is None else {group: dataclasses.replace(made[group], **{name: value})}
    return made


def weights(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "mvpl"
    train(out=out, **settings(videos, diagnose=True, validate_every=3))
    return out


def test_a_run_says_what_happens(trained: Path) -> None:
    lines = log(trained)
    assert len(lines) == 6
    assert ["coverage" in line for line in lines] == [False, False, True, True, True, True]
    assert "pseudo_accuracy_tg" in lines[-1]
    assert ["validation_accuracy" in line for line in lines] == [False, False, True, False, False, True]
    lr = [line["lr"] for line in lines]
    peak = 0.1 * (3 + 6) / 40
    assert lr[0] == pytest.approx(peak / 10)
    assert max(lr) == pytest.approx(peak)
    card = json.loads((trained / "model/model.json").read_text())["metadata"]
    assert card["method"] == "mvpl"
    assert len(card["learned_from"]) == 9


def test_every_draw_is_a_function_of_its_keys(
    videos: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed midway, or uses workers, ends in the same bytes."""
    real = Feed.batch

    def killed(self: Feed, step: int) -> object:
        if step == 4:
            raise KeyboardInterrupt
        return real(self, step)

    monkeypatch.setattr(Feed, "batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train(out=tmp_path / "a", **settings(videos, diagnose=True, validate_every=3))
    monkeypatch.setattr(Feed, "batch", real)
    resumed = RunOptions(**{**vars(CPU), "resume": True, "workers": 1})
    train(out=tmp_path / "a", **settings(videos, diagnose=True, validate_every=3, run=resumed))
    assert weights(tmp_path / "a") == weights(trained)
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("layout", ["list", "folders"])
def test_a_killed_run_goes_on_where_the_data_lie_now(
    videos: Path, trained: Path, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "other disk" / "there"
    shutil.copytree(videos, here)
    if layout == "folders":
        (here / "clips.csv").unlink()
    data = "clips.csv" if layout == "list" else ""
    real = Feed.batch

    def killed(self: Feed, step: int) -> object:
        if step == 4:
            raise KeyboardInterrupt
        return real(self, step)

    monkeypatch.setattr(Feed, "batch", killed)
    given = {"diagnose": True, "validate_every": 3}
    with pytest.raises(KeyboardInterrupt):
        train(out=tmp_path / "run", **settings(here, **given, data=str(here / data)))
    monkeypatch.setattr(Feed, "batch", real)
    there.parent.mkdir()
    here.rename(there)
    (tmp_path / "run").rename(tmp_path / "moved run")
    resumed = dataclasses.replace(CPU, resume=True)
    train(out=tmp_path / "moved run", **settings(there, **given, data=str(there / data), run=resumed))
    assert weights(tmp_path / "moved run") == weights(trained)
    assert (tmp_path / "moved run/metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()


def test_labels_that_are_not_given_are_not_looked_at(videos: Path, trained: Path, tmp_path: Path) -> None:
    known = {key for key, _ in json.loads((videos / "1each-draw0.json").read_text())["labelled"]}
    kept = {key for key, _ in json.loads((videos / "1each-draw0.json").read_text())["validation"]}
    rows = (videos / "clips.csv").read_text().splitlines()
    hidden = [row if row.split(",")[0] in known | kept | {"path"} else row.split(",")[0] + "," for row in rows]
    other = videos / "hidden.csv"
    other.write_text("\n".join(hidden) + "\n")
    train(out=tmp_path / "a", **settings(videos, validate_every=3, data=str(other)))
    assert weights(tmp_path / "a") == weights(trained)
    train(out=tmp_path / "b", **settings(videos, diagnose=True, validate_every=3, data=str(other)))
    assert weights(tmp_path / "b") == weights(trained)
    # Pseudo-labels are compared where the class is known; nothing else of the diagnosis depends on classes.
    some, every = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (tmp_path / "b", trained)
    )
    assert [_without_truth(row) for row in some] == [_without_truth(row) for row in every]
    accuracy = "pseudo_accuracy_all"
    assert [row.get(accuracy) for row in some] != [row.get(accuracy) for row in every]


def _without_truth(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if not name.startswith("pseudo_accuracy")}


def test_test_scores_are_means_over_clips_and_crops(videos: Path, trained: Path, tmp_path: Path) -> None:
    found = evaluate(
        str(trained),
        str(videos / "clips.csv"),
        split=videos / "1each-draw0.json",
        sampling=SamplingOptions(clips=2, crops=3),
        device="cpu",
    )
    folder = trained / "evaluation"
    assert json.loads((folder / "test.json").read_text())["views"]["rgb"]["top1"] == found.views["rgb"].top1
    Image.open(folder / "test-confusion.png").verify()
    with np.load(folder / "test-predictions.npz") as arrays:
        probabilities, labels, keys = arrays["probabilities"], arrays["labels"], arrays["keys"]
    assert probabilities.shape == (6, 2, 3)
    for place, name in enumerate(("rgb", "tg")):
        top1 = 100 * (probabilities[:, place].argmax(1) == labels).mean()
        assert found.views[name].top1 == pytest.approx(top1)
    assert found.views["fused"].top1 == pytest.approx(100 * (probabilities.mean(1).argmax(1) == labels).mean())
    assert np.array(found.confusion).sum() == 6
    # One video by hand.
    recognizer = load_recognizer(trained, device="cpu")
    path = videos / str(keys[3])
    net = recognizer.network
    expected = []
    for start in clip_starts(index_video(path).duration, CLIP, 2):
        clip = read_clip(path, start, CLIP, following=True)
        for crop in ClipAugment(16, views=("rgb", "tg")).plain(clip, crops=3):
            x = (crop["rgb"].transpose(1, 2) / 255 - 0.45) / 0.225
            expected.append(net(x).softmax(1)[0])
    assert np.allclose(probabilities[3, 0], torch.stack(expected).mean(0).detach().numpy(), atol=1e-5)


def test_a_report_shows_what_there_is(videos: Path, trained: Path, tmp_path: Path) -> None:
    page = report(trained, out=tmp_path / "before.html").read_text()
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert page.count("<svg") >= 3
    assert_fits_a_phone(Page(page))
    assert "Views alone, on unlabelled clips" in page
    assert "3 labelled videos and 6 others whose labels were not used" in page
    evaluate(
        str(trained),
        str(videos / "clips.csv"),
        split=videos / "1each-draw0.json",
        sampling=SamplingOptions(clips=1, crops=1),
        device="cpu",
    )
    page = report(trained).read_text()
    assert (trained / "report.html").is_file()
    assert "Evaluation: test" in page
    assert "<dt>chance</dt><dd>33.3 %</dd>" in page
    assert 'src="data:image/png;base64' in page
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    config = yaml.safe_load((moved / "config.yaml").read_text())
    (moved / "config.yaml").write_text(yaml.safe_dump({**config, "data": str(tmp_path / "gone")}))
    shutil.rmtree(moved / "model")
    page = report(moved).read_text()
    assert "Training has not ended: 6 of 6 steps are done." in page
    shutil.copytree(trained / "model", moved / "model")
    assert "The videos could not be opened" in report(moved).read_text()
    assert "could not be opened" not in report(moved, data=str(videos / "clips.csv")).read_text()
    with pytest.raises(UserError, match="no such file or folder"):
        report(moved, data=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"found no config\.yaml"):
        report(tmp_path)


def test_a_video_without_a_view_is_fused_without_it() -> None:
    p = torch.tensor([[[0.2, 0.8], [0.6, 0.4]], [[0.3, 0.7], [torch.nan, torch.nan]]])
    assert torch.allclose(fused(p), torch.tensor([[0.4, 0.6], [0.3, 0.7]]))


def test_testing_what_was_trained_on_is_refused(videos: Path, trained: Path, tmp_path: Path) -> None:
    make_splits(
        str(videos / "clips.csv"),
        tmp_path,
        draw=LabelDrawOptions(fractions=(), per_class=(1,), draws=1, seed=3),
        by="clip",
    )
    with pytest.raises(UserError, match="test videos were used for training"):
        evaluate(str(trained), str(videos / "clips.csv"), split=tmp_path / "1each-draw0.json", device="cpu")


def test_videos_are_known_by_their_content(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train through the manifest of `check`, whose keys differ, and test through the folder."""
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder, ignore=shutil.ignore_patterns("*.json", "*.csv"))
    assert main(["check", str(folder), "--out", str(tmp_path / "man/manifest.csv"), "--no-decode"]) == 0
    make_splits(str(folder), tmp_path / "s", draw=LabelDrawOptions(fractions=(0.5,), draws=1), by="clip")
    run = settings(videos, data=str(tmp_path / "man/manifest.csv"), split=tmp_path / "s/50percent-draw0.json", steps=2)
    train(out=tmp_path / "run", **run)
    make_splits(
        str(folder),
        tmp_path / "s2",
        draw=LabelDrawOptions(fractions=(0.5,), draws=1, seed=7),
        by="clip",
        test_fraction=0.5,
    )
    with pytest.raises(UserError, match="test videos were used for training"):
        evaluate(str(tmp_path / "run"), str(folder), split=tmp_path / "s2/50percent-draw0.json", device="cpu")
    with pytest.raises(UserError, match="test videos were used for training"):
        evaluate(str(tmp_path / "run"), str(folder), device="cpu")
    found = evaluate(
        str(tmp_path / "run"),
        str(folder),
        split=tmp_path / "s/50percent-draw0.json",
        sampling=SamplingOptions(clips=1, crops=1),
        device="cpu",
    )
    assert found.views["rgb"].videos > 0


def test_another_labelled_folder_is_tested_on_without_a_split(videos: Path, trained: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    kept = [key for key, _ in read_split(videos / "1each-draw0.json").test]
    for key in kept:
        (others / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / key, others / key)
    shutil.copy(videos / kept[0], others / "loose.mkv")
    found = evaluate(
        str(trained), str(others), sampling=SamplingOptions(clips=1, crops=1), device="cpu", out=tmp_path / "e"
    )
    by_split = evaluate(
        str(trained), str(videos / "clips.csv"), split=videos / "1each-draw0.json",
        sampling=SamplingOptions(clips=1, crops=1), device="cpu",
        out=tmp_path / "f",
    )  # fmt: skip
    assert (found.part, found.split, found.confusion) == ("all", "", by_split.confusion)
    assert (tmp_path / "e/all.json").is_file()
    (others / "violet").mkdir()
    shutil.copy(videos / kept[0], others / "violet/x.mkv")
    with pytest.raises(UserError, match=r"1 classes that .* was not trained on \(violet\)"):
        evaluate(str(trained), str(others), device="cpu")
    shutil.rmtree(others / "violet")
    (tmp_path / "g/all.json").mkdir(parents=True)
    with pytest.raises(UserError, match="is a folder"):
        evaluate(str(trained), str(others), device="cpu", out=tmp_path / "g")


def test_a_run_goes_on_where_the_data_lie_now(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there, real = tmp_path / "here", tmp_path / "there", Feed.batch
    shutil.copytree(videos, here)
    train(out=tmp_path / "whole", **settings(here))

    def killed(self: Feed, step: int) -> object:
        if step == 4:
            raise KeyboardInterrupt
        return real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "batch", killed)
        with pytest.raises(KeyboardInterrupt):
            train(out=tmp_path / "run", **settings(here))
    here.rename(there)
    resumed = settings(there, run=dataclasses.replace(CPU, resume=True))
    make_splits(
        str(there / "clips.csv"),
        tmp_path / "s",
        draw=LabelDrawOptions(fractions=(), per_class=(1,), draws=1, seed=5),
        by="clip",
    )
    with pytest.raises(UserError, match="is not the split that this run was started with"):
        train(out=tmp_path / "run", **{**resumed, "split": tmp_path / "s/1each-draw0.json"})
    train(out=tmp_path / "run", **resumed)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_recalibration_loses_no_model_for_a_bad_file(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training never drew the file; recalibration reads it after the last step."""
    real, trained = ClipDataset.clip, False

    def clip(self: ClipDataset, index: int, *, seed: int) -> object:
        if trained and index % 2:
            raise UserError("a file that cannot be read")
        return real(self, index, seed=seed)

    def batch(self: Feed, step: int) -> object:
        nonlocal trained
        found = Feed_batch(self, step)
        trained = step == 1
        return found

    Feed_batch = Feed.batch
    monkeypatch.setattr(ClipDataset, "clip", clip)
    monkeypatch.setattr(Feed, "batch", batch)
    train(out=tmp_path / "a", **settings(videos, steps=2))
    assert load_recognizer(tmp_path / "a", device="cpu").network is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "fixmatch"},
        {"method": "supervised", "views": ("rgb",)},
        {"bn": "split", "ema": 0.9, "pseudo": PseudoOptions(threshold=0.7, fusion="adaptive", align=True)},
        {"recalibrate": 0, "shared_geometry": False, "exclude_labelled": True, "strong": StrongOptions(num_ops=1)},
        {"pseudo": PseudoOptions(target="random", soft=True, threshold=0.7, temperature=0.5)},
    ],
    ids=["fixmatch", "supervised", "split", "plain", "random"],
)
def test_every_method_trains(videos: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    train(out=tmp_path / "a", **settings(videos, steps=3, **changes))
    recognizer = load_recognizer(tmp_path / "a", device="cpu")
    for view in recognizer.recipe.views:
        p = recognizer.probabilities(torch.rand(2, 3, 3, 16, 16) * 255, view)
        assert torch.allclose(p.sum(1), torch.ones(2), atol=1e-5)
    if changes.get("method") == "fixmatch":
        assert recognizer.recipe.views == ("rgb",)


def test_colours_are_learned(videos: Path, tmp_path: Path) -> None:
    run = settings(videos, steps=60, views=("rgb",), strong=StrongOptions(num_ops=0), recalibrate=27)
    run |= {"optimizer": OptimizerOptions(lr=0.2)}
    train(out=tmp_path / "a", **run)
    score = evaluate(
        str(tmp_path / "a"),
        str(videos / "clips.csv"),
        split=videos / "1each-draw0.json",
        sampling=SamplingOptions(clips=1, crops=1),
        device="cpu",
    )
    assert score.views["rgb"].top1 == 100.0


def test_bad_files_are_skipped_up_to_a_share(videos: Path, tmp_path: Path) -> None:
    rows = (videos / "clips.csv").read_text().splitlines()
    split = json.loads((videos / "1each-draw0.json").read_text())
    labelled = {key for key, _ in split["labelled"]}
    victim = next(key for key in split["train"] if key not in labelled)
    for row in rows[1:]:
        key = row.split(",")[0]
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(b"no video" if key == victim else (videos / key).read_bytes())
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    run = settings(videos, data=str(tmp_path / "clips.csv"))
    with pytest.raises(UserError, match=r"1 of 9 videos cannot be read, and 0 may be skipped"):
        train(out=tmp_path / "a", **run)
    train(out=tmp_path / "b", read=TrainingReadOptions(max_bad=0.2), **run)
    listed = [json.loads(line) for line in (tmp_path / "b/bad_files.jsonl").read_text().splitlines()]
    assert [line["path"].endswith(victim) for line in listed] == [True]


def test_training_with_a_cache_ends_with_the_same_bytes(
    trained: Path, videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cached = TrainingReadOptions(cache=tmp_path / "frames")
    train(out=tmp_path / "a", read=cached, **settings(videos, diagnose=True, validate_every=3))
    assert weights(tmp_path / "a") == weights(trained)
    stored = {file.name: file.read_bytes() for file in (tmp_path / "frames").iterdir()}
    assert len(stored) == 9  # validation and test videos are not stored
    assert f"cache {tmp_path / 'frames'}: 157 kB of at most 20 GB, all 9 videos" in capfd.readouterr().err
    # A run that was interrupted without a cache continues with one, in a loader process.
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b/model")
    shutil.rmtree(tmp_path / "b/checkpoints/step-000006")
    resumed = dataclasses.replace(CPU, resume=True, workers=1)
    again = TrainingReadOptions(cache=tmp_path / "other", cache_size=1.0)
    train(out=tmp_path / "b", read=again, **settings(videos, diagnose=True, validate_every=3, run=resumed))
    assert weights(tmp_path / "b") == weights(trained)
    assert {file.name for file in (tmp_path / "other").iterdir()} <= set(stored)


def test_the_summary_of_the_cache_counts_the_videos_that_recalibration_reads(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    short = settings(videos, steps=1, recalibrate=64)
    train(out=tmp_path / "a", read=TrainingReadOptions(cache=tmp_path / "frames"), **short)
    stored = len(list((tmp_path / "frames").glob("*.npy")))
    said = "all 9 videos" if stored == 9 else f"{9 - stored} of 9 videos not stored"
    assert said in capfd.readouterr().err


def test_a_cache_among_the_videos_and_weights_elsewhere_are_refused(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contains the videos; choose another folder for their frames"):
        train(out=tmp_path / "a", read=TrainingReadOptions(cache=videos / "red"), **settings(videos))
    with pytest.raises(UserError, match=r"https://host/w\.pth: found an address, .*download the weights first"):
        train(out=tmp_path / "a", init="https://host/w.pth", **settings(videos))
    assert not list(videos.rglob("*.npy"))


def test_a_bad_validation_video_does_not_end_the_run(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = (videos / "clips.csv").read_text().splitlines()
    victim = json.loads((videos / "1each-draw0.json").read_text())["validation"][0][0]
    for row in rows[1:]:
        key = row.split(",")[0]
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(b"no video" if key == victim else (videos / key).read_bytes())
    (tmp_path / "clips.csv").write_text("\n".join(rows) + "\n")
    run = settings(videos, data=str(tmp_path / "clips.csv"), steps=2, validate_every=1)
    with pytest.raises(UserError, match=r"1 of 3 videos cannot be read or classified; see --max-bad"):
        train(out=tmp_path / "a", **run)
    train(out=tmp_path / "b", read=TrainingReadOptions(max_bad=0.4), **run)
    assert (tmp_path / "b/model/model.json").is_file()
    assert capfd.readouterr().err.count(f"skipped in validation: {tmp_path / victim}") == 1
    records = [json.loads(line) for line in (tmp_path / "b/metrics.jsonl").read_text().splitlines()]
    assert [0 <= record["validation_accuracy"] <= 1 for record in records] == [True, True]


def test_fewer_videos_than_unlabelled_clips_per_step(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(out=tmp_path / "a", **settings(videos, steps=2, mu=9))
    said = capfd.readouterr().err
    assert "a step takes 9 unlabelled clips, one of each training video, fewer than mu x batch_size = 27" in said
    assert "12 clips per step" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"views": ("rgb", "depth")}, "views are rgb, depth"),
        ({"pseudo": PseudoOptions(view_weights=(1.0,), threshold=0.7)}, "2 weights"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_wrong_settings_are_one_clear_error(
    videos: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        train(out=tmp_path / "a", **settings(videos, **changes))


def test_a_low_threshold_is_said_once_where_it_matters(
    videos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    low = PseudoOptions(threshold=0.3)
    train(out=tmp_path / "a", **settings(videos, steps=1, pseudo=low))
    said = capfd.readouterr().err
    assert said.count("note: threshold 0.3 is below twice chance") == 1
    assert "note: 1 labelled video per class" in said
    assert said.count("1 step without pre-trained weights make a short run") == 1
    assert said.count("compare the two") == 1
    train(out=tmp_path / "b", **settings(videos, steps=1, pseudo=low, method="supervised"))
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in "ab"]
    assert ["feature_distance" in text for text in metrics] == [True, False]
    assert "note:" not in capfd.readouterr().err
    for name, chosen in (("c", PseudoOptions(threshold=0.8)), ("d", PseudoOptions())):  # the default with few labels
        train(out=tmp_path / name, **settings(videos, steps=1, pseudo=chosen))
        assert "those with a confidence below 0.8 are ignored" in capfd.readouterr().err
    assert not [warning for warning in recwarn if "chance" in str(warning.message)]


@pytest.mark.parametrize(
    ("labelled", "classes", "views", "expected"),
    [
        (40, 10, 2, ("freematch", 0.4)), (39, 10, 2, ("fixed", 0.8)), (400, 4, 2, ("fixed", 0.8)),
        (20, 5, 3, ("freematch", 0.4)), (1600, 400, 2, ("freematch", 0.4)), (40, 10, 1, ("fixed", 0.4)),
    ],
)  # fmt: skip
def test_the_selection_follows_the_number_of_labels(
    labelled: int, classes: int, views: int, expected: tuple[str, float]
) -> None:
    def settled(**given: Any) -> tuple[str | None, float | None]:
        found = PseudoOptions(**given).settled(labelled, classes=classes, views=views)
        return found.select, found.threshold

    assert settled() == expected
    assert settled(threshold=0.55) == ("fixed", 0.55)
    assert settled(select="softmatch") == ("softmatch", expected[1])
    assert settled(select="freematch", threshold=0.5) == ("freematch", 0.5)


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_takes_the_recipes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = yaml.safe_load((files("ssl_video.configs") / f"{name}.yaml").read_text())
    assert main(["train", "videos", "out", "--split", "s.json", "--config", name, "--print_config"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    for key, value in given.items():
        if isinstance(value, dict):
            assert resolved[key].items() >= value.items()
        else:
            assert resolved[key] == value


@pytest.mark.slow
def test_what_no_view_knows_alone_they_know_together(tmp_path: Path) -> None:
    """Two classes differ in colour, two in direction: frames or motion alone are right for three of four clips."""
    result = demo(tmp_path, device="cpu")
    found = result.score.views
    assert max(found["rgb"].top1, found["tg"].top1) < 85
    assert min(found["rgb"].top1, found["tg"].top1) > 60
    assert found["fused"].top1 > 90
    assert "both together" in str(result)
    again = demo(tmp_path, device="cpu")
    assert again.score == result.score


@pytest.mark.slow
@pytest.mark.parametrize("select", ["--threshold=0.7", "--pseudo.select=freematch", "--pseudo.select=softmatch"])
def test_two_processes_see_what_one_sees(videos: Path, tmp_path: Path, select: str) -> None:
    words = ["train", str(videos / "clips.csv"), "--split", str(videos / "1each-draw0.json"), "--views", "[rgb,tg]"]
    words += [
        "--steps=4",
        "--batch_size=2",
        "--mu=2",
        "--image_size=16",
        "--clip.frames=3",
        "--clip.stride=2",
        "--bn=split",
    ]
    words += ["--network.name=small_slow", "--width=4", "--dropout=0", select, "--pseudo.warmup=0.25"]
    words += ["--recalibrate=0", "--device=cpu", "--threads=1", "--log_every=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start in (("one", [sys.executable]), ("two", torchrun)):
        command = [*start, "-m", "ssl_video", *words, "--out", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    nets = [load_recognizer(tmp_path / name, device="cpu").network.state_dict() for name in ("one", "two")]
    for name, value in nets[0].items():
        assert torch.allclose(value.float(), nets[1][name].float(), rtol=1e-3, atol=1e-5), name


def test_a_network_of_ones_own_trains_and_is_opened_only_when_trusted(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def build(classes):\n"
        "    return nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.AdaptiveAvgPool3d(1), nn.Flatten(), "
        "nn.Linear(4, classes))\n"
        "def wrong(classes):\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = NetworkOptions("mine:build", mean=(0.4, 0.5, 0.6), std=(0.2,))
    train(out=tmp_path / "run", **settings(videos, steps=2, network=own))
    with pytest.raises(UserError, match=r"would run mine:build, .*--trust-model-code"):
        load_recognizer(tmp_path / "run", device="cpu")
    opened = load_recognizer(tmp_path / "run", device="cpu", network="mine:build")
    assert opened.recipe.network == own
    for name, said in (("mine:nothing", "has no attribute"), ("nowhere:build", "No module"), ("mine:wrong", "a int")):
        with pytest.raises(UserError, match=said):
            train(out=tmp_path / "b", **settings(videos, network=NetworkOptions(name)))
    with pytest.raises(UserError, match="expected one of slow_r50"):
        NetworkOptions("resnet")


def test_a_network_that_returns_more_than_logits_is_tested_and_exported_like_any_other(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "richer.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def forward(self, x):\n        return {'loss': None, 'logits': super().forward(x)}\n"
        "class Many(nn.Sequential):\n"
        "    def forward(self, x):\n        return super().forward(x * float('nan'))\n"
        "def layers(classes):\n"
        "    return nn.Conv3d(3, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, classes)\n"
        "def build(classes):\n    return Net(*layers(classes))\n"
        "def wide(classes):\n    return Net(*layers(400))\n"
        "def broken(classes):\n    return Many(*layers(classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    run = tmp_path / "run"
    train(out=run, **settings(videos, steps=2, network=NetworkOptions("richer:build"), validate_every=2))
    data, split = str(videos / "clips.csv"), videos / "1each-draw0.json"
    sampling = SamplingOptions(clips=1, crops=1)
    assert (
        evaluate(str(run), data, split=split, sampling=sampling, device="cpu", network="richer:build")
        .views["rgb"]
        .videos
        == 6
    )
    export(str(run), tmp_path / "weights.safetensors", network="richer:build")
    for name, said in (
        ("wide", r"returned \[\d+, 400\]; expected logits \[\d+, 3\] for classes=3"),
        ("broken", r"step 1: the gradient is not finite \(loss nan\)"),
    ):
        with pytest.raises(UserError, match=said):
            train(out=tmp_path / name, **settings(videos, steps=2, network=NetworkOptions(f"richer:{name}")))


def test_the_recipe_of_the_paper_keeps_what_was_set(videos: Path, tmp_path: Path) -> None:
    given = settings(videos, steps=2, views=InputOptions().views)
    train(out=tmp_path / "strong", **given)
    assert load_recognizer(tmp_path / "strong", device="cpu").recipe.views == ("rgb", "tg")
    train(out=tmp_path / "paper", recipe="paper", **{**given, "pseudo": PseudoOptions(weight=2.0)})
    config = yaml.safe_load((tmp_path / "paper/config.yaml").read_text())
    assert config["inputs"]["views"] == ["rgb", "flow", "tg"]
    assert (config["training"]["bn"], config["pseudo"]["threshold"], config["pseudo"]["warmup"]) == (
        "joint",
        0.3,
        0.125,
    )
    assert (config["pseudo"]["weight"], config["pseudo"]["agreement_weight"]) == (2.0, 0.0)
    assert (config["strong"]["num_ops"], config["strong"]["magnitude"], config["strong"]["motion_ops"]) == (
        2,
        10,
        "full",
    )
    train(out=tmp_path / "own", recipe="paper", **settings(videos, steps=2, views=("rgb",)))
    config = yaml.safe_load((tmp_path / "own/config.yaml").read_text())
    assert (config["inputs"]["views"], config["pseudo"]["threshold"]) == (["rgb"], 0.7)
