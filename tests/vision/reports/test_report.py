"""The report of a run: it needs no other file, and shows training data and results."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from contrastive_core.app.report import run_record
from contrastive_core.app.report.figures import Panel, to_png, training_figures
from contrastive_core.app.report.page import to_image
from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions
from ssl_vision.augment import SimCLRAugment
from ssl_vision.cli import main
from ssl_vision.commands.knn import knn
from ssl_vision.commands.pretrain import pretrain
from ssl_vision.commands.report import report
from ssl_vision.data import open_images
from ssl_vision.evaluation.features import extract
from ssl_vision.evaluation.scores import ProbeOptions
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import load_encoder
from ssl_vision.reports.figures import pretraining_panels
from ssl_vision.reports.run_folder import open_run, read_scores
from ssl_vision.reports.sections import accuracy_curves, by_protocol
from ssl_vision.reports.sheets import choose_bank, choose_images, draw_views, find_neighbours, nearest
from ssl_vision.training.options import AugmentOptions, MemoryOptions, PretrainingOptions, SuNCEtOptions
from tests.pages import Page, assert_fits_a_phone, assert_stands_alone, read

EPOCHS, BATCH = 3, 48


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """140 digits to train on and 40 to test on, as files."""
    folder = tmp_path_factory.mktemp("data") / "few digits"
    for split, count in (("train", 14), ("test", 4)):
        images = open_images("digits", split=split)
        for digit in range(10):
            (folder / split / str(digit)).mkdir(parents=True)
            for i in (images.labels() == digit).nonzero()[:count, 0].tolist():
                to_image(images.read(i)).save(folder / split / str(digit) / f"{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def recorded(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[int, int], list[Tensor]]]:
    """A run, and every view that training has drawn: (epoch, image) -> view a, view b."""
    run = tmp_path_factory.mktemp("report") / "run"
    calls: list[tuple[list[int], Tensor]] = []
    forward = SimCLRAugment.forward

    def record(self: SimCLRAugment, images: Tensor, *, seed: int, ids: Tensor) -> Tensor:
        views = forward(self, images, seed=seed, ids=ids)
        calls.append((ids.tolist(), views.clone()))
        return views

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimCLRAugment, "forward", record)
        pretrain(
            data,
            run,
            training=PretrainingOptions(epochs=EPOCHS, batch_size=BATCH, image_size=16, save_every=2),
            encoder=EncoderOptions(width_multiplier=0.125),
            augment=AugmentOptions(flip=False, blur=True),
            run=RunOptions(device="cpu", threads=1, progress=False, seed=5, log_every=2),
        )
    views: dict[tuple[int, int], list[Tensor]] = {}
    per_epoch = len(calls) // EPOCHS
    for number, (ids, drawn) in enumerate(calls):
        for image, view in zip(ids, drawn, strict=True):
            views.setdefault((number // per_epoch, image), []).append(view)
    knn(str(run), data, k=20)
    for epoch in (0, 2):
        knn(str(run / f"models/epoch-{epoch:04d}"), data, k=20)
    knn("pixels", data, k=20, probe=ProbeOptions(out=run / "evaluation" / "pixels-knn.json"))
    return run, views


@pytest.fixture(scope="module")
def page(recorded: tuple[Path, object]) -> Page:
    return read(report(recorded[0], rows=4, bank=120, device="cpu"))


@pytest.fixture
def copy(recorded: tuple[Path, object], tmp_path: Path) -> Path:
    """A copy of the run to damage."""
    return shutil.copytree(recorded[0], tmp_path / "copy")


def test_page_stands_alone(recorded: tuple[Path, object], page: Page) -> None:
    file = recorded[0] / "report.html"
    assert file.stat().st_size < 3_000_000
    assert_stands_alone(page, file.read_text(encoding="utf-8"))
    assert_fits_a_phone(page)


@pytest.mark.parametrize(("reached", "warned"), [(1 / 64, True), (0.5, False)])
def test_a_network_that_has_learnt_nothing_is_warned_of(copy: Path, reached: float, warned: bool) -> None:
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(re.sub(r"(?m)^  batch_size: \d+", "  batch_size: 64", config))
    lines = [{"step": i, "loss": 4.8, "contrastive_accuracy": reached, "epoch": i / 4} for i in range(8)]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = " ".join(read(report(copy, rows=1, bank=2, device="cpu", overwrite=True)).words)
    assert ("Contrastive accuracy is no better than chance" in found) == warned


def test_page_says_what_was_run(page: Page) -> None:
    assert page.tags.count("h1") == 1
    assert "SimCLR pre-training of resnet18 on few digits" in page.text
    assert "140 images without their labels" in page.text
    assert f"{EPOCHS} epochs in batches of {BATCH}, seed 5" in page.text
    assert page.tags.count("svg") == 4  # three curves of training, and those of the evaluation
    headings = ["Training", "Evaluation", "What training sees", "Nearest neighbours", "Settings", "Environment"]
    positions = [page.text.index(f" {heading} ") for heading in headings]
    assert positions == sorted(positions)
    for setting in (
        "batch_size 48",
        "image_size 16",
        "width_multiplier 0.125",
        "flip false",
        "blur true",
        "save_every 2",
        "seed 5",
    ):
        assert f" {setting} " in page.text
    assert f"torch {torch.__version__}" in page.text
    changed = page.attributes.count(("tr", "class", "changed"))
    # epochs, batch_size, image_size, save_every; width; blur, flip; seed, device, threads, log_every, progress.
    assert changed == 12


def test_accuracies_are_those_of_the_evaluation(recorded: tuple[Path, object], page: Page) -> None:
    run = recorded[0]
    written = {
        "raw pixels": run / "evaluation" / "pixels-knn.json",
        "untrained network": run / "models" / "epoch-0000" / "evaluation" / "knn.json",
        "after 2 of 3 epochs": run / "models" / "epoch-0002" / "evaluation" / "knn.json",
        "after 3 of 3 epochs": run / "evaluation" / "knn.json",
    }
    for name, file in written.items():
        score = json.loads(file.read_text())
        assert f"{name} {score['top1']:.1f} % (top-5 {score['top5']:.1f} %)" in page.text
    assert "k 20, temperature 0.1" in page.text
    curves, baselines = accuracy_curves(by_protocol(read_scores(open_run(run))))
    top1 = [json.loads(written[name].read_text())["top1"] for name in list(written)]
    assert curves == {"nearest neighbours": {0.0: top1[1], 2.0: top1[2], 3.0: top1[3]}}
    assert baselines == {"nearest neighbours": top1[0]}
    assert "of another model" not in page.text


def test_views_are_those_of_training(
    data: str, recorded: tuple[Path, dict[tuple[int, int], list[Tensor]]], page: Page
) -> None:
    run, trained_on = recorded
    images = open_images(data)
    settings = open_run(run).settings
    # An epoch leaves out what does not fill a batch, so look at images that were in every epoch.
    seen = [i for i in range(len(images)) if all((epoch, i) in trained_on for epoch in range(EPOCHS))][:40]
    for row, index in zip(draw_views(images, settings, seen, list(range(EPOCHS))), seen, strict=True):
        for epoch, pair in enumerate(row.pairs):
            assert torch.equal(torch.stack(pair), torch.stack(trained_on[epoch, index]))
        assert torch.equal(row.original.pixels, images.read(index))
    # On the page stand the same pixels, in the order of the sheet.
    chosen = choose_images(images, 4, seed=0)
    rows = draw_views(images, settings, chosen, [0, 1, EPOCHS - 1])
    expected = [
        pixels
        for row in rows
        for pixels in [row.original.pixels, *((view * 255).round().byte() for pair in row.pairs for view in pair)]
    ]
    shown = page.images["What training sees"]
    assert len(shown) == 4 * 7
    for picture, pixels in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), pixels.permute(1, 2, 0).numpy())


def test_neighbours_are_the_most_similar_images(data: str, recorded: tuple[Path, object], page: Page) -> None:
    run = recorded[0]
    images = open_images(data)
    bank = choose_bank(images, 120, seed=0)
    model = load_encoder(str(run), device="cpu")
    queries = choose_images(bank, 4, seed=0)
    features = extract(model, bank).numpy().astype(np.float64)
    for row, query in zip(find_neighbours(model, bank, queries), queries, strict=True):
        cosine = features @ features[query] / (np.linalg.norm(features, axis=1) * np.linalg.norm(features[query]))
        best = sorted((i for i in range(120) if i != query), key=lambda i: -cosine[i])[:5]
        assert [picture.path for picture, _ in row.nearest] == [bank.path(i) for i in best]
        np.testing.assert_allclose([s for _, s in row.nearest], cosine[best], atol=1e-6)
        assert all(f"{s:.3f}" in page.text for _, s in row.nearest)
        marks = ["✓" if bank.label(i) == bank.label(query) else "✗" for i in best]
        labels = [bank.label(i) for i in best]
        line = " ".join(f"{n} {mark} {s:.3f}" for n, mark, (_, s) in zip(labels, marks, row.nearest, strict=True))
        assert f"{bank.label(query)} {line}" in page.text
    assert len(page.images["Nearest neighbours"]) == 4 * 6


def test_nearest_leaves_out_the_query_and_takes_the_first_of_equals() -> None:
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [-1.0, 0.0]])
    similarity, index = nearest(rows, torch.tensor([1, 2]), 9)
    assert index.tolist() == [[0, 3, 2, 4], [0, 1, 3, 4]]
    assert similarity.tolist() == [[1, 1, 0, -1], [0, 0, 0, 0]]


def test_chosen_images_are_of_different_classes_and_never_bad() -> None:
    images = open_images("digits")
    chosen = choose_images(images, 10, seed=3)
    assert sorted(images.label(i) or 0 for i in chosen) == list(range(10))
    assert choose_images(images, 10, seed=3) == chosen != choose_images(images, 10, seed=4)
    others = choose_images(images, 10, seed=3, without=set(chosen))
    assert not set(others) & set(chosen)
    bank = choose_bank(images, 1432, seed=0, without={7})
    assert bank.indices == [i for i in range(1433) if i != 7]
    assert bank.labels().tolist() == images.labels()[bank.indices].tolist()


def test_command_line_writes_where_told(recorded: tuple[Path, object], tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "deep" / "page.html"
    arguments = ["report", str(recorded[0]), "--out", str(out), "--rows", "2", "--bank", "10", "--part", "test"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert "among 10 images of few digits, split test" in read(out).text


def test_large_pictures_stay_small_in_the_page(copy: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(8):
        pixels = rng.integers(0, 256, (500, 900, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    file = report(copy, data=str(tmp_path / "photos"), part="all", device="cpu", out=tmp_path / "page.html")
    assert file.stat().st_size < 3_000_000
    photos = read(file).images["Nearest neighbours"]
    assert {picture.size for picture in photos} == {(160, 89)}
    assert "✓" not in read(file).text  # they have no classes


def test_run_that_has_not_ended(copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "model")
    shutil.rmtree(copy / "evaluation")
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:10])  # killed while writing
    text = read(report(copy, rows=2, device="cpu")).text
    epoch = json.loads(lines[2])["epoch"]
    assert f"Training has not ended: {epoch:.4g} epochs are done" in text
    assert "There is no trained model yet." in text
    assert "untrained network" in text


def test_run_without_anything_yet(copy: Path) -> None:
    for folder in ("model", "evaluation", "models", "checkpoints"):
        shutil.rmtree(copy / folder)
    for file in copy.glob("*.jsonl"):
        file.unlink()
    text = read(report(copy, rows=2, device="cpu")).text
    assert "Nothing has been logged yet." in text
    assert f"ssl-vision knn {copy} DATA" in text


def test_data_that_moved_is_said_and_the_rest_is_shown(data: str, copy: Path, tmp_path: Path) -> None:
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(f"data: {data}", f"data: {tmp_path}/gone"))
    page = read(report(copy, device="cpu"))
    assert f"{tmp_path}/gone" in page.text
    assert "ssl-vision report --data DATA" in page.text
    assert page.images == {}
    assert "after 3 of 3 epochs" in page.text
    with pytest.raises(UserError, match="gone"):
        report(copy, data=str(tmp_path / "gone"), device="cpu")


def test_names_from_outside_are_text(copy: Path, tmp_path: Path) -> None:
    name = '<b>"cats" & co'
    folder = tmp_path / "data" / "train" / name
    folder.mkdir(parents=True)
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    page = read(report(copy, data=str(tmp_path / "data"), rows=2, device="cpu"))
    assert page.text.count(name) >= 12
    assert "b" not in page.tags


def test_bad_files_are_counted_and_not_shown(data: str, copy: Path) -> None:
    chosen = choose_images(open_images(data), 2, seed=0)
    record = {"index": chosen[0], "path": "x", "reason": "x/1.png: truncated"}
    (copy / "bad_files.jsonl").write_text(json.dumps(record) + "\n")
    page = read(report(copy, rows=1, bank=10, device="cpu"))
    assert "Unreadable and replaced by others: 1 image (" in page.text
    assert "x/1.png: truncated" in page.text
    first = np.asarray(page.images["What training sees"][0])
    np.testing.assert_array_equal(first, open_images(data).read(chosen[1]).permute(1, 2, 0).numpy())


def test_scores_of_another_model_are_marked(copy: Path) -> None:
    file = copy / "evaluation" / "knn.json"
    score = json.loads(file.read_text())
    file.write_text(json.dumps({**score, "encoder_hash": "0" * 64}))
    assert "belong to a model other than the one in the folder" in read(report(copy, rows=1, device="cpu")).text


def test_protocols_that_differ_stay_apart(data: str, copy: Path) -> None:
    knn(str(copy), data, k=1, probe=ProbeOptions(out=copy / "evaluation" / "one.json"))
    protocols = by_protocol(read_scores(open_run(copy)))
    assert [p.name for p in protocols] == ["nearest neighbours, few digits (1)", "nearest neighbours, few digits (2)"]
    assert sorted(p.example.score.settings["k"] for p in protocols) == [1, 20]
    curves, _ = accuracy_curves(protocols)
    assert len(curves) == 1  # a single point is no curve


def test_first_and_last_point_of_a_curve_are_drawn_whole() -> None:
    """The first and last marker lie on the edges of the axes, where half of each would be cut off."""
    records = [{"step": 10.0 * n, "epoch": float(n), "loss": 2.0 - n / 10, "lr": 0.1} for n in range(5)]
    (figure,) = training_figures(records, [Panel("Loss", {"loss": ""})])
    (axes,) = figure.axes
    pixels = np.asarray(Image.open(io.BytesIO(to_png(figure))).convert("RGB")).astype(int)
    blue, width = pixels[:, :, 2] - pixels[:, :, 0] > 60, pixels.shape[1]
    box = axes.get_position()
    left, right = round(box.x0 * width), round(box.x1 * width)
    assert blue[:, left - 3].any()
    assert blue[:, right + 3].any()


@pytest.mark.parametrize("highest", [0.03, 0.1, 0.26, 0.6, 1.0])
def test_ticks_of_shares_are_whole_percents(highest: float) -> None:
    """Rounded labels would be wrong: ticks at 2.5 % and 7.5 % were labelled 2 % and 8 %."""
    records = [{"step": 10.0 * n, "epoch": float(n), "accuracy": highest * n / 4, "lr": 0.1} for n in range(5)]
    (figure,) = training_figures(records, [Panel("Accuracy", {"accuracy": ""}, share=True)])
    to_png(figure)
    ticks = figure.axes[0].get_yticks() * 100
    np.testing.assert_allclose(ticks, ticks.round(), atol=1e-9)
    assert len(ticks) > 2


@pytest.mark.parametrize("batch_size", [48, 0], ids=["beside SimCLR", "alone"])
def test_suncet_has_a_curve_of_its_own(batch_size: int, data: str, tmp_path: Path) -> None:
    pretrain(
        data, tmp_path / "run", training=PretrainingOptions(epochs=2, batch_size=batch_size, image_size=8),
        encoder=EncoderOptions(width_multiplier=0.0625),
        suncet=SuNCEtOptions(classes_per_batch=10, images_per_class=3),
        run=RunOptions(device="cpu", threads=1, progress=False, log_every=1),
    )  # fmt: skip
    page = read(report(tmp_path / "run", rows=1, bank=20, device="cpu"))
    method = "SimCLR + SuNCEt" if batch_size else "SuNCEt"
    assert f"{method} pre-training of resnet18 on few digits" in page.text
    assert ("exactly the pixels that the network receives" in page.text) == (batch_size > 0)
    records = open_run(tmp_path / "run").records
    panels = [figure.axes[0] for figure in training_figures(records, pretraining_panels(batch_size))]
    assert len(panels) == (3 if batch_size else 2)
    curves = [list(line.get_ydata()) for line in panels[0].lines if len(line.get_xdata()) == len(records)]
    names = ["nt_xent", "suncet"] if batch_size else ["suncet"]
    assert curves == [[record[name] for record in records] for name in names]


def test_a_memory_is_said_and_counts_by_chance(data: str, tmp_path: Path) -> None:
    pretrain(
        data,
        tmp_path / "run",
        training=PretrainingOptions(epochs=1, batch_size=16, image_size=8),
        encoder=EncoderOptions(width_multiplier=0.0625),
        memory=MemoryOptions(projections=32),
        run=RunOptions(device="cpu", threads=1, progress=False, log_every=1),
    )
    settings = open_run(tmp_path / "run").settings
    loss, accuracy, _ = pretraining_panels(settings.batch_size, memory=settings.memory)
    assert loss.chance == pytest.approx(np.log(15 + 16 + 32))
    assert accuracy.chance == 1 / 16
    assert "SimCLR with a memory pre-training" in read(report(tmp_path / "run", rows=1, bank=9, device="cpu")).text


def test_time_is_summed_over_starts(copy: Path) -> None:
    lines = [
        {"session": 0},
        {"step": 0, "seconds": 1.0},
        {"step": 3, "seconds": 4.0},
        {"session": 2},
        {"step": 5, "seconds": 2.5},
    ]
    (copy / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "sec')
    run = open_run(copy)
    assert run.seconds == 6.5
    assert len(run.sessions) == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "epochs: 3\n", "not the configuration of a run"),
        ("metrics.jsonl", "{broken\n", "metrics.jsonl: is damaged"),
        ("evaluation/knn.json", '{"top1": 3}', "knn.json: found no score"),
        ("evaluation/knn.json", "[]", "knn.json: found no score"),
    ],
)
def test_damaged_files_are_named(copy: Path, file: str, content: str, message: str) -> None:
    (copy / file).write_text(content)
    with pytest.raises(UserError, match=message):
        report(copy, device="cpu")


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config.yaml, expected the output folder of `ssl-vision pretrain`"):
        report(tmp_path)


def test_commit_is_of_the_checkout_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "environment.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    monkeypatch.setattr(run_record, "__file__", str(tmp_path / "environment.py"))
    assert run_record.source_commit() == commit
    (tmp_path / "environment.py").write_text("a = 2\n")
    assert run_record.source_commit() == f"{commit} with local changes"
    # An installed copy, in an environment inside a repository that is not its own.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "environment.py").write_text("a = 1\n")
    monkeypatch.setattr(run_record, "__file__", str(tmp_path / "site" / "environment.py"))
    assert run_record.source_commit() is None
