"""Stored optical flow: computed from the right frames, at the right pixels after cropping, never of another video."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions
from ssl_video import views
from ssl_video.augment import ClipAugment, WeakOptions, spread_crops, weak_crop
from ssl_video.cli import main
from ssl_video.commands.evaluate import evaluate
from ssl_video.commands.flow import flow
from ssl_video.commands.make_splits import LabelDrawOptions, make_splits
from ssl_video.commands.predict import predict
from ssl_video.commands.report import report
from ssl_video.commands.train import train
from ssl_video.data import ClipDataset, ClipSpec, open_videos, read_clip
from ssl_video.data.reader import TrainingReadOptions
from ssl_video.evaluation import SamplingOptions
from ssl_video.models import NetworkOptions
from ssl_video.optical_flow import compute, methods
from ssl_video.optical_flow.cache import FlowCache, FlowSettings
from ssl_video.training.options import InputOptions, PseudoOptions, TrainingOptions

cv2 = pytest.importorskip("cv2")

Write = Callable[..., Path]
SPEC = ClipSpec(frames=2, stride=2)
U, V = 2.0, -1.0  # what the videos below do: 2 pixels to the right, 1 up


def moving(frames: int = 6, *, height: int = 64, width: int = 80, seed: int = 0) -> np.ndarray:
    """Frames [F, H, W, 3] of a smooth texture that moves by (U, V) between frames."""
    far = 2 * frames
    noise = np.random.default_rng(seed).uniform(0, 255, (height + far, width + far, 3)).astype(np.float32)
    texture = cv2.GaussianBlur(noise, (0, 0), 2.0)
    texture = (255 * (texture - texture.min()) / (texture.max() - texture.min())).astype(np.uint8)
    return np.stack([texture[n : n + height, far - 2 * n : far - 2 * n + width] for n in range(frames)])


@pytest.fixture
def folder(write_video: Write) -> Path:
    """Three videos in two classes."""
    for seed, name in enumerate(("a/0", "a/1", "b/0")):
        path = write_video(f"set/{name}.mkv", moving(seed=seed))
    return path.parent.parent


def centre(displacement: Tensor) -> list[float]:
    """Return the median (u, v) away from the border, of the first frame of the first clip."""
    height, width = displacement.shape[-2:]
    inner = displacement[0, 0, :, height // 4 : -height // 4, width // 4 : -width // 4]
    return inner.flatten(1).median(dim=1).values.tolist()


def cached(folder: Path, out: Path, **options: object) -> FlowCache:
    flow(str(folder), out, workers=0, **options)
    return FlowCache.open(out, method="dis")


def test_nothing_cropped_it_is_the_flow_of_the_frames(folder: Path, tmp_path: Path) -> None:
    cache = cached(folder, tmp_path / "flow", short_side=0)
    path = folder / "a/1.mkv"
    for start in (0.0, 0.08, 5.0):  # the last: beyond the end
        clip = read_clip(path, start, SPEC, following=True, flow=cache)
        exact = views.displacement(clip.frames, clip.following)
        assert clip.flow is not None
        assert torch.equal(clip.flow, exact.half().float())
        made = views.make_views(clip, ("flow",))["flow"]
        assert (made - views.flow_picture(exact)).abs().max() < 255 / 2**11  # of 255: float16
    alone = read_clip(path, 0.08, SPEC, flow=cache)
    both = read_clip(path, 0.08, SPEC, following=True)
    assert alone.following is None
    assert torch.equal(alone.frames, both.frames)


@pytest.mark.parametrize("short_side", [0, 32])
def test_crops_turn_and_scale_the_vectors(folder: Path, tmp_path: Path, short_side: int) -> None:
    cache = cached(folder, tmp_path / "flow", short_side=short_side)
    clip = read_clip(folder / "a/0.mkv", 0.0, SPEC, flow=cache)
    assert clip.flow is not None
    assert clip.flow.shape[-2:] == ((32, 40) if short_side else (64, 80))
    assert centre(clip.flow) == pytest.approx([U / 2, V / 2] if short_side else [U, V], abs=0.15)
    one = torch.zeros(1, dtype=torch.int64)
    for size, flip in ((64, 0.0), (64, 1.0), (32, 0.0), (128, 1.0)):  # of frames 64 high
        options = WeakOptions(min_scale=1, max_scale=1, mirror=flip)
        found = weak_crop(clip, size=size, seed=0, ids=one, options=options)
        assert found.flow is not None
        assert found.flow.shape == (1, 2, 2, size, size)
        scale, sign = size / 64, -1 if flip else 1
        assert centre(found.flow) == pytest.approx([sign * U * scale, V * scale], abs=0.15 * scale + 0.1)
    for crop in spread_crops(clip, size=32, crops=3):
        assert crop.flow is not None
        assert centre(crop.flow) == pytest.approx([U / 2, V / 2], abs=0.15)


def test_a_crop_is_where_that_of_the_frames_is(folder: Path, tmp_path: Path) -> None:
    """With flow that encodes its own position, cropped flow and cropped frames show the same places."""
    cache = cached(folder, tmp_path / "flow", short_side=0)
    clip = read_clip(folder / "a/0.mkv", 0.0, SPEC, flow=cache)
    across = torch.linspace(0, 200, 80).expand(64, 80)
    down = torch.linspace(0, 200, 64)[:, None].expand(64, 80)
    frames = torch.stack([across, down, down]).round().to(torch.uint8).expand(1, 2, 3, 64, 80)
    marked = views.Clips(frames, flow=torch.stack([across, down]).expand(1, 2, 2, 64, 80).contiguous())
    ids = torch.arange(8)
    batch = [marked] * 8
    found = weak_crop(batch, size=40, seed=3, ids=ids)
    assert found.flow is not None
    assert len({tuple(crop[0, 1, 20].tolist()) for crop in found.flow}) > 4  # crops differ
    for crop, vectors in zip(found.frames, found.flow, strict=True):
        short = vectors[0, 1].mean() / crop[0, 1].float().mean()  # the factor that v was scaled by
        assert 40 * 256 / 224 / 64 - 0.03 < short < 40 * 320 / 224 / 64 + 0.03
        horizontal = vectors[0, 0].abs() / crop[0, 0].float().clamp(min=20)
        inner = crop[0, 0] > 40
        assert (horizontal[inner] - short).abs().max() < 0.06
        mirrored = bool(crop[0, 0, 0, 0] > crop[0, 0, 0, -1])
        assert bool((vectors[0, 0] <= 0).all()) == mirrored
    assert clip.flow is not None


def test_a_byte_is_precise_to_a_step_and_rest_is_rest() -> None:
    settings = FlowSettings("dis", "", "", 0, "byte")
    bound = 20 * 64 / 256
    displacement = torch.empty(3, 2, 64, 80).uniform_(-bound, bound, generator=torch.Generator().manual_seed(0))
    displacement[0, 0, 0, :4] = torch.tensor([0.0, bound, -bound, 100.0])
    found = settings.decode(settings.encode(displacement))
    assert found[0, 0, 0, :4].tolist() == pytest.approx([0.0, bound, -bound, bound])
    assert found[0, 0, 0, 0] == 0
    assert (found - displacement.clamp(-bound, bound)).abs().max() <= bound / 254 + 1e-6


def test_files_are_listed_and_take_what_was_said(
    folder: Path, write_video: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video("set/b/still.mkv", moving(1))
    (folder / "b/copy.mkv").write_bytes((folder / "b/0.mkv").read_bytes())
    (folder / "a/broken.avi").write_text("no video")
    data = bytearray(write_video("set/a/cut.mp4", moving(30), gop=5).read_bytes())
    data[len(data) // 3 : 2 * len(data) // 3] = bytes(2 * len(data) // 3 - len(data) // 3)
    (folder / "a/cut.mp4").write_bytes(data)
    out = tmp_path / "flow"
    said = flow(str(folder), out, short_side=32, precision="byte", dry_run=True)
    assert not out.exists()
    assert "takes" in capsys.readouterr().err
    assert main(["flow", str(folder), str(out), "--short_side", "32", "--precision", "byte", "--workers", "2"]) == 0
    text = capsys.readouterr().out
    assert "flow of 5 of 7 videos" in text
    assert "2 could not be read" in text
    files = {file.name: file.stat().st_size for file in out.glob("??/*")}
    assert len(files) == 4
    assert set(files.values()) == {128 + 5 * 2 * 32 * 40, 128 + 2 * 32 * 40}
    rows = [line.split(",", 2) for line in (out / "videos.csv").read_text().splitlines()[1:]]
    assert {row[0] for row in rows if row[2]} == {"a/broken.avi", "a/cut.mp4"}
    assert dict(row[:2] for row in rows)["b/0.mkv"] == dict(row[:2] for row in rows)["b/copy.mkv"]
    assert said.size - sum(files.values()) == 128 + 29 * 2 * 32 * 40  # but for the one that broke off
    rest = FlowCache.open(out, method="dis").read(folder / "b/still.mkv", [0])
    assert rest.abs().max() < 0.05
    again = flow(str(folder), out, short_side=32, precision="byte", workers=0)
    assert (again.computed, again.before, len(again.unreadable)) == (0, 4, 2)


def test_it_goes_on_where_it_was_killed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = tmp_path / "whole", tmp_path / "flow"
    flow(str(folder), whole, workers=2)
    real, calls = compute._flows, []

    def killed(path: Path, *rest: object) -> object:
        calls.append(path)
        for number, part in enumerate(real(path, *rest)):
            yield part
            if len(calls) == 2 and number == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(compute, "_flows", killed)
    process = multiprocessing.get_context("fork").Process(target=flow, args=(str(folder), out), kwargs={"workers": 0})
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = list(out.glob("??/.*.tmp"))
    assert len(left) == 1  # half a file, under a name that nobody reads
    monkeypatch.setattr(compute, "_flows", real)
    again = flow(str(folder), out, workers=0)
    assert (again.computed, again.before) == (2, 1)
    files = {file.relative_to(out) for file in out.glob("??/*")}
    assert files == {file.relative_to(whole) for file in whole.glob("??/*")}
    assert all((out / file).read_bytes() == (whole / file).read_bytes() for file in files)


def test_what_is_stale_is_refused(folder: Path, tmp_path: Path, write_video: Write) -> None:
    cache = cached(folder, tmp_path / "flow")
    path = folder / "a/0.mkv"
    cache.require([open_videos(folder)])
    write_video("set/a/0.mkv", moving(seed=7))  # as many frames, of the same size
    with pytest.raises(UserError, match=r"its flow is not in .* new or has changed"):
        read_clip(path, 0.0, SPEC, flow=cache)
    with pytest.raises(UserError, match=r"1 of the 3 videos have no flow there \(a/0\.mkv\)"):
        cache.require([open_videos(folder)])
    cache.require([open_videos(folder)], max_bad=0.4)
    again = flow(str(folder), tmp_path / "flow", workers=0)
    assert (again.computed, again.before) == (1, 2)
    clip = read_clip(path, 0.0, SPEC, following=True, flow=cache)
    assert clip.flow is not None
    assert torch.equal(clip.flow, views.displacement(clip.frames, clip.following).half().float())


def test_other_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "flow"
    cached(folder, out)
    with pytest.raises(UserError, match=r"other settings: method 'dis' \(now 'farneback'\)"):
        flow(str(folder), out, method="farneback")
    with pytest.raises(UserError, match=r"short_side 128 \(now 64\), precision 'half' \(now 'byte'\)"):
        flow(str(folder), out, short_side=64, precision="byte")
    with pytest.raises(UserError, match=r"contains flow of dis, expected farneback"):
        FlowCache.open(out, method="farneback")
    with pytest.raises(UserError, match=r"found no flow\.json"):
        FlowCache.open(tmp_path, method="dis")
    content = json.loads((out / "flow.json").read_text())
    (out / "flow.json").write_text(json.dumps({**content, "format": "another"}))
    with pytest.raises(UserError, match="does not describe stored flow"):
        FlowCache.open(out, method="dis")
    with pytest.raises(UserError, match="short_side >= 0"):
        flow(str(folder), out, short_side=-1)


def test_flow_is_never_declared_to_be_of_another_method(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plan = tmp_path / "flow", compute.plan

    def late(*args: Any) -> compute.Work:
        monkeypatch.setattr("ssl_video.commands.flow.plan", plan)
        cached(folder, out)  # another process fills the folder between our first look and our lock
        return plan(*args)

    monkeypatch.setattr("ssl_video.commands.flow.plan", late)
    with pytest.raises(UserError, match=r"other settings: method 'dis' \(now 'farneback'\)"):
        flow(str(folder), out, method="farneback", workers=0)
    assert json.loads((out / "flow.json").read_text())["method"] == "dis"
    (out / "flow.json").unlink()
    with pytest.raises(UserError, match=r"contains flow, but no flow\.json"):
        flow(str(folder), out, method="farneback", workers=0)


def test_a_damaged_file_is_named(folder: Path, tmp_path: Path) -> None:
    cache = cached(folder, tmp_path / "flow")
    file = cache.file(folder / "a/0.mkv")
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(UserError, match="cannot be read as flow"):
        cache.read(folder / "a/0.mkv", [0])
    np.save(file, np.zeros((3, 2, 4, 4), np.float16))
    with pytest.raises(UserError, match=r"found float16 \(3, 2, 4, 4\), expected float16 \(5, 2, h, w\)"):
        cache.read(folder / "a/0.mkv", [0])


def test_too_little_space_is_said_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 0, 100))
    with pytest.raises(UserError, match=r"the missing files take about .*, but only 100 B are free"):
        flow(str(folder), tmp_path / "flow")
    assert not (tmp_path / "flow").exists()


def test_a_data_set_reads_it(folder: Path, tmp_path: Path) -> None:
    cache = cached(folder, tmp_path / "flow", short_side=0)
    data = ClipDataset(open_videos(folder), SPEC, flow=cache)
    exact = ClipDataset(open_videos(folder), SPEC, following=True)
    augment = ClipAugment(64, views=("rgb", "flow"), weak=WeakOptions(min_scale=1, max_scale=1, mirror=0))
    ids = torch.arange(3)
    stored, computed = (
        augment.weak([of.clip(i, seed=1).clip for i in range(3)], seed=1, ids=ids) for of in (data, exact)
    )
    assert torch.equal(stored["rgb"], computed["rgb"])
    inner = (..., slice(8, -8), slice(8, -8))  # where the window's edge hides nothing from either
    assert (stored["flow"][inner] - computed["flow"][inner]).abs().median() < 2


def test_training_and_testing_read_it(
    folder: Path, write_video: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):  # all different: a copy of a video that was trained on is refused as a test
        write_video(f"set/b/{number}.mkv", moving(seed=2 + number))
        write_video(f"set/a/{number + 1}.mkv", moving(seed=5 + number))
    make_splits(
        str(folder),
        tmp_path,
        draw=LabelDrawOptions(fractions=(), per_class=(1,), draws=1, validation_fraction=0),
        by="clip",
        test_fraction=0.3,
    )
    split = tmp_path / "1each-draw0.json"
    same = {
        "split": split,
        "inputs": InputOptions(("rgb", "flow"), image_size=32),
        "training": TrainingOptions(steps=2, batch_size=2, mu=1, recalibrate=4),
        "clip": SPEC,
        "network": NetworkOptions("small_slow", width=4),
        "pseudo": PseudoOptions(threshold=0.7, warmup=0),
        "run": RunOptions(device="cpu", threads=1, progress=False, log_every=1),
    }
    cached(folder, tmp_path / "flow")
    read = TrainingReadOptions(tmp_path / "flow")
    train(str(folder), tmp_path / "computed", **same)
    monkeypatch.setattr(methods, "flow_method", None)  # nobody computes flow now
    train(str(folder), tmp_path / "stored", read=read, **same)
    computed, stored = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("computed", "stored")
    )
    assert stored == pytest.approx(computed, rel=0.1)
    assert stored != computed
    found = evaluate(
        str(tmp_path / "stored"), str(folder), split=split,
        sampling=SamplingOptions(clips=1, crops=1), read=read, device="cpu",
    )  # fmt: skip
    assert found.views["flow"].videos == len(json.loads(split.read_text())["test"])
    assert "What the network sees" in report(tmp_path / "stored").read_text()
    model, table = str(tmp_path / "stored"), tmp_path / "classes.csv"
    sampling = SamplingOptions(("flow",), clips=1, crops=1)
    named: dict[str, Any] = {"sampling": sampling, "read": read, "sheet": 0, "device": "cpu"}
    assert predict(model, str(folder), table, **named).unreadable == 0
    (folder / "a/1.mkv").write_bytes((folder / "b/0.mkv").read_bytes()[:-7])
    assert predict(model, str(folder), table, **named).unreadable == 1
    assert "its flow is not in" in table.read_text()
    with pytest.raises(UserError, match="have no flow there"):
        train(str(folder), tmp_path / "stale", read=read, **same)


@pytest.mark.parametrize("at", [6, 9, 20, 60])
def test_damaged_flow_is_an_error_that_names_the_file(folder: Path, tmp_path: Path, at: int) -> None:
    """NumPy reads the header as a Python literal, so null bytes in it raise a SyntaxError."""
    cache = cached(folder, tmp_path / "flow")
    video = folder / "a/0.mkv"
    file = cache.file(video)
    content = bytearray(file.read_bytes())
    content[at : at + 4] = bytes(4)
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{file.name}: .*delete it and run"):
        cache.read(video, [0])


@pytest.mark.parametrize("change", [{"weights": 3}, {"short_side": "32"}, {"precision": "double"}, {"more": 1}])
def test_changed_settings_of_stored_flow_are_refused(folder: Path, tmp_path: Path, change: dict[str, object]) -> None:
    cached(folder, tmp_path / "flow")
    file = tmp_path / "flow" / "flow.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=r"flow\.json: does not describe stored flow"):
        FlowCache.open(tmp_path / "flow", method="dis")
