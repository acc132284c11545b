"""Uses of a trained network: predictions as a table, and files for other programs."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions
from ssl_video import evaluation
from ssl_video.cli import main
from ssl_video.commands.evaluate import evaluate
from ssl_video.commands.export import export
from ssl_video.commands.predict import predict, spread
from ssl_video.data import ClipSpec, Video, open_videos
from ssl_video.data.audio_reader import read_audio
from ssl_video.data.clip import Clips
from ssl_video.data.reader import read_clip
from ssl_video.data.synthetic import CLASSES, draw_video, make_videos
from ssl_video.data.video_index import index_video
from ssl_video.evaluation import SamplingOptions, classify_all, fused
from ssl_video.models import NetworkOptions, build_network
from ssl_video.models.model_folder import Recipe, load_recognizer, save_recognizer
from ssl_video.models.networks import SmallSlow
from ssl_video.reports.contact_sheet import beginning, end


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose views have different batch norms."""
    torch.manual_seed(0)
    recipe = Recipe(NetworkOptions("small_slow", width=4), CLASSES, ClipSpec(frames=3, stride=4), 24, ("rgb", "tg"))
    network = recipe.build()
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
        if name.endswith("running_mean"):
            buffer.uniform_(-0.5, 0.5)
    torch.nn.init.normal_(network.fc.weight)
    out = tmp_path_factory.mktemp("model") / "run"
    with Run(out, config={}, command="test", options=RunOptions(device="cpu", threads=1, progress=False)) as run:
        save_recognizer(run, network, recipe, learned_from=[], about={})
    return out


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("generated"), per_class=2)


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_predictions_are_those_of_the_network(model: Path, videos: Path, tmp_path: Path) -> None:
    (videos / "dots").mkdir(exist_ok=True)
    (videos / "dots/bad.avi").write_text("no video")
    out = tmp_path / "classes.csv"
    said = predict(
        str(model),
        str(videos),
        out,
        sampling=SamplingOptions(("rgb", "tg"), clips=2, crops=1),
        top=2,
        sheet=3,
        device="cpu",
    )
    rows = table(out)
    assert (said.videos, said.unreadable, len(rows)) == (9, 1, 9)
    assert "1 could not be read" in str(said)
    broken = [row for row in rows if row["error"]]
    assert [row["path"] for row in broken] == ["dots/bad.avi"]
    assert broken[0]["class"] == ""
    recognizer = load_recognizer(model, device="cpu")
    for row in rows:
        if not row["error"]:
            video = Video(row["path"], videos / row["path"])
            sampling = SamplingOptions(clips=2, crops=1)
            [found] = classify_all(recognizer, [video], views=("rgb", "tg"), sampling=sampling)
            assert isinstance(found, torch.Tensor)
            p = fused(found[None])[0]
            assert row["class"] == CLASSES[int(p.argmax())]
            assert float(row["probability"]) == pytest.approx(p.max().item(), rel=1e-4)
            assert float(row["probability_2"]) == pytest.approx(p.topk(2).values[1].item(), rel=1e-4)
    with Image.open(tmp_path / "classes.png") as sheet:
        assert min(sheet.size) > 100
    with pytest.raises(UserError, match="can list 1 to 4 classes"):
        predict(str(model), str(videos), out, top=5)
    with pytest.raises(UserError, match="was trained on rgb, tg"):
        predict(str(model), str(videos), out, sampling=SamplingOptions(("flow",)))


def test_values_that_are_not_finite_are_no_missing_view(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = make_videos(tmp_path / "set", per_class=1)
    normal, calls = SmallSlow.forward, iter(range(100))

    def forward(self: SmallSlow, clips: Tensor) -> Tensor:
        return normal(self, clips) * (torch.nan if next(calls) == 1 else 1.0)  # the view tg of the first video

    monkeypatch.setattr(SmallSlow, "forward", forward)
    sampling, out = SamplingOptions(("rgb", "tg"), clips=1, crops=1), tmp_path / "classes.csv"
    assert predict(str(model), str(videos), out, sampling=sampling, sheet=0, device="cpu").unreadable >= 1
    assert "not finite for the view tg" in table(out)[0]["error"]
    calls = iter(range(100))
    with pytest.raises(UserError, match=r"blue.*not finite for the view tg(.|\n)*cannot be read or classified"):
        evaluate(str(model), str(videos), sampling=sampling, out=tmp_path, device="cpu")


def test_equal_probabilities_are_ranked_by_class(
    model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first class is that of argmax, with which `evaluate` counts; topk can name another one."""
    plain = load_recognizer(model, device="cpu")
    names = [f"class{i:03}" for i in range(400)]
    recognizer = dataclasses.replace(plain, recipe=dataclasses.replace(plain.recipe, classes=names))
    scores = torch.full((1, 400), 1e-5)
    scores[0, [7, 120, 250, 390]] = 0.25
    assert scores[0].topk(4).indices.tolist() != [7, 120, 250, 390]
    monkeypatch.setattr("ssl_video.commands.predict.load_recognizer", lambda *_, **__: recognizer)
    monkeypatch.setattr("ssl_video.commands.predict.classify_all", lambda *_, **__: iter([scores]))
    predict(str(model), str(videos / "red/000.mkv"), tmp_path / "classes.csv", top=4, sheet=0)
    [row] = table(tmp_path / "classes.csv")
    ranked = [row["class"], *(row[f"class_{rank}"] for rank in (2, 3, 4))]
    assert ranked == ["class007", "class120", "class250", "class390"]


def test_reading_ahead_stops_when_nobody_waits(model: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later, stopped, read = threading.Event(), threading.Event(), []

    def slow(path: Path, start: float, *args: Any, **options: Any) -> Clips:
        read.append(path)
        if path != files[0].path:
            later.set()
            assert stopped.wait(60)
        return read_clip(path, start, *args, **options)

    monkeypatch.setattr(evaluation, "read_clip", slow)
    files = [Video(str(file), file) for file in sorted(videos.rglob("*.mkv"))[:3]]
    results = classify_all(
        load_recognizer(model, device="cpu"), files, views=("rgb",), sampling=SamplingOptions(clips=50, crops=1)
    )
    assert isinstance(next(results), Tensor)
    assert later.wait(60)
    threading.Timer(0.2, stopped.set).start()
    results.close()  # type: ignore[attr-defined]
    assert len(read) < 50 + 10, "at most one more clip of each video"


def test_no_cell_is_a_formula(model: Path, videos: Path, tmp_path: Path) -> None:
    source = next(path for path in sorted(videos.rglob("*.*")) if path.suffix in (".avi", ".mp4", ".mkv"))
    (tmp_path / "data").mkdir()
    for name in ("=1+1", "-dash", "@x"):
        shutil.copy(source, tmp_path / "data" / f"{name}{source.suffix}")
    out = tmp_path / "out.csv"
    predict(str(model), str(tmp_path / "data"), out, sampling=SamplingOptions(clips=1, crops=1), sheet=0, device="cpu")
    assert [row["path"] for row in table(out)] == [f"./{name}{source.suffix}" for name in ("-dash", "=1+1", "@x")]
    main(["check", str(tmp_path / "data"), "--out", str(tmp_path / "data/manifest.csv")])
    assert all(row["path"].startswith("./") for row in table(tmp_path / "data/manifest.csv"))
    assert {video.path.name for video in open_videos(tmp_path / "data/manifest.csv").videos} == {
        f"{name}{source.suffix}" for name in ("=1+1", "-dash", "@x")
    }


def test_one_video_is_predicted(model: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.csv"
    predict(
        str(model), str(videos / "red/000.mkv"), out, sampling=SamplingOptions(clips=1, crops=1), sheet=0, device="cpu"
    )
    assert [row["path"] for row in table(out)] == ["000.mkv"]


def test_nothing_of_the_users_is_replaced(
    model: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "mine.png").write_text("my picture")
    (tmp_path / "notes.csv").write_text("my notes")

    def run(name: str, **options: object) -> None:
        data = str(videos / "red/000.mkv")
        predict(str(model), data, tmp_path / name, sampling=SamplingOptions(clips=1, crops=1), device="cpu", **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:  # before any work
        patch.setattr("ssl_video.commands.predict.classify_all", lambda *_, **__: pytest.fail("has begun"))
        for name, said in (
            ("folder.csv", r"folder\.csv is a folder"),
            ("mine.csv", "mine.png already exists"),
            ("notes.csv", "notes.csv already exists"),
            ("notes.csv/deeper.csv", "cannot be written"),
        ):
            with pytest.raises(UserError, match=said):
                run(name)
        with pytest.raises(UserError, match=r"^\. is a folder"):
            predict(str(model), str(videos / "red/000.mkv"), Path(), device="cpu")
    assert (tmp_path / "mine.png").read_text() == "my picture"
    run("mine.csv", sheet=0)
    run("own.csv")
    run("own.csv")  # what the command has written it may write again
    assert (tmp_path / "own.png").is_file()


@pytest.mark.parametrize(
    ("videos", "most", "shown"), [(13, 24, range(13)), (5, 3, (0, 2, 4)), (4, 1, (0,)), (3, 0, ())]
)
def test_the_sheet_shows_as_many_videos_as_it_may(videos: int, most: int, shown: Iterable[int]) -> None:
    assert spread(videos, most) == set(shown)


def test_a_sheet_shortens_names_where_they_are_alike() -> None:
    assert end("v_JugglingBalls_train_001.avi") == "…lingBalls_train_001.avi"
    assert beginning("BandMarching 49 %") == "BandMarching 49 %"
    assert len(end("x" * 80)) == len(beginning("x" * 80)) == 24


def expected(model: Path, clips: Tensor, view: str) -> Tensor:
    recognizer = load_recognizer(model, device="cpu")
    return recognizer.probabilities(clips.transpose(1, 2) * 255, view)


@pytest.mark.parametrize("view", ["rgb", "tg"])
def test_exported_programs_give_the_same(
    model: Path, tmp_path: Path, view: str, recwarn: pytest.WarningsRecorder
) -> None:
    clips = torch.rand(5, 3, 3, 24, 24)
    said = export(str(model), tmp_path / "net.pt2", view=view)
    assert not [warning for warning in recwarn if "complete tensor" in str(warning.message)]
    assert "largest difference" in said
    logits = torch.export.load(tmp_path / "net.pt2").module()(clips)
    assert torch.allclose(logits.softmax(1), expected(model, clips, view), atol=1e-5)
    card = json.loads((tmp_path / "net.pt2.json").read_text())
    assert card["classes"] == list(CLASSES)
    assert card["input"]["view"] == view
    export(str(model), tmp_path / "net.safetensors", view=view)
    plain = build_network(NetworkOptions("small_slow", width=4), 4)
    plain.load_state_dict(safetensors.torch.load_file(tmp_path / "net.safetensors"))
    found = plain.eval()((clips - 0.45) / 0.225).softmax(1)
    assert torch.allclose(found, expected(model, clips, view), atol=1e-5)


def test_onnx_gives_the_same(model: Path, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export(str(model), tmp_path / "net.onnx")
    assert "short side of 24 px" in json.loads((tmp_path / "net.onnx.json").read_text())["input"]["preparation"]
    clips = torch.rand(4, 3, 3, 24, 24)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])
    assert torch.allclose(logits.softmax(1), expected(model, clips, "rgb"), atol=1e-5)


def test_what_cannot_be_exported_is_said(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found the suffix '\.pth'"):
        export(str(model), tmp_path / "net.pth")
    with pytest.raises(UserError, match="view is 'flow'"):
        export(str(model), tmp_path / "net.pt2", view="flow")


def test_generated_videos_need_both_views() -> None:
    """Frames four apart do not tell rising from falling; the change to the next frame does not tell blue from red."""

    def drawn(name: str, number: int) -> np.ndarray:
        return draw_video(name, np.random.default_rng([number])).astype(float)

    up, down = drawn("rising", 3), drawn("falling", 3)
    assert np.array_equal(up[::4], down[::4])
    for name, frames, step in (("rising", up, -5), ("falling", down, 5)):
        for first in (0, 4, 8, 12):
            assert np.abs(np.roll(frames[first], step, axis=0) - frames[first + 1]).mean() < 10, (name, first)
            assert np.abs(frames[first] - frames[first + 1]).mean() > 10
    for name in ("blue", "red"):
        still = drawn(name, 3)
        assert np.array_equal(still[::4], still[1::4])
    assert not np.array_equal(drawn("blue", 3)[0], drawn("red", 3)[0])


@pytest.mark.parametrize("marks", [[[]], [["a", 1]], [None], 3, {"a": 1}])
def test_marks_of_another_type_are_no_video(marks: object, model: Path, videos: Path) -> None:
    found = load_recognizer(model, device="cpu")
    changed = dataclasses.replace(found, card={**found.card, "learned_from": marks})
    assert changed.learned_from(open_videos(str(videos)).videos[:1]) == []


def test_a_pipe_is_no_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match="is a pipe or device; expected a video file"):
        index_video(tmp_path / "pipe.mp4")


def test_sound_of_hardly_any_samples_is_refused(tmp_path: Path) -> None:
    """A block of 65,535 samples at 1 Hz would become 4 GB at 16 kHz."""
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + 8000, b"WAVE", b"fmt ", 16, 1, 1, 1, 2, 2, 16, b"data", 8000)
    (tmp_path / "slow.wav").write_bytes(head + bytes(8000))
    with pytest.raises(UserError, match=r"slow\.wav.*states 1 samples per second"):
        read_audio(tmp_path / "slow.wav", 0.0, 1.0)
