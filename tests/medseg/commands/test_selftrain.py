"""Self-training on a small phantom, as the command line runs it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions
from ssl_medseg.datasets import DataOptions, Split, open_dataset, write_split
from ssl_medseg.models import NetworkOptions
from ssl_medseg.models.model_folder import load_segmenter
from ssl_medseg.phantom import write_phantom
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.preprocessing.cases import prepare_cases
from ssl_medseg.selftraining.options import ConsistencyOptions, ContrastOptions, PseudoLabelOptions
from ssl_medseg.selftraining.rounds import UNUSED, Pool, read_pseudo_labels, read_rounds
from ssl_medseg.selftraining.training import selftrain
from ssl_medseg.training.data import TrainingData
from ssl_medseg.training.optim import DurationEstimate
from ssl_medseg.training.recipe import TrainingOptions
from ssl_medseg.training.supervised import train
from tests.medseg.grouped import grouped
from tests.medseg.two_processes import alone_and_together

RUN = RunOptions(device="cpu", threads=1, log_every=1, checkpoint_every=2, progress=False)
OPENING = DataOptions(patient_pattern="(patient[0-9]+)", allow_unlabelled=True)
SHORT: dict[str, Any] = {
    "rounds": 2, "steps": 3, "batch_size": 4, "unlabelled_batch": 4, "validate_every": 2,
    "pseudo": PseudoLabelOptions(guard="off"), "opening": OPENING, "run": RUN,
}  # fmt: skip


class Place:
    """A phantom, its split and the segmenter from which self-training starts."""

    def __init__(self, folder: Path) -> None:
        self.data, self.split, self.start = folder / "data", folder / "split.json", folder / "start"
        write_phantom(self.data, patients=6, frames=1, size=64)
        dataset = open_dataset(self.data, patient_pattern="(patient[0-9]+)")
        names = dataset.names
        write_split(self.split, Split((names[0],), (names[1],), (names[2],), names[3:]), dataset)
        train(
            str(self.data), self.start, split=self.split,
            training=TrainingOptions("paper", steps=80, batch_size=8, validate_every=80),
            network=NetworkOptions("unet", 4), preprocessing=PreprocessingOptions(image_size=32), opening=OPENING,
            run=RUN,
        )  # fmt: skip
        self.unlabelled = names[3:]

    def selftrain(self, out: Path, **changed: Any) -> Path:
        return selftrain(str(self.start), str(self.data), out, split=self.split, **grouped(**{**SHORT, **changed}))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("phantom"))


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def outcome(run: Path) -> dict[str, str]:
    """Return a hash of everything that a run promises to repeat."""
    files = [p for part in ("model", "models", "pseudo", "rounds") for p in sorted((run / part).rglob("*.*"))]
    return {
        str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in [run / "metrics.jsonl", *files]
    }


PSEUDO: dict[str, Any] = {"method": "rounds"}
CONTRAST: dict[str, Any] = {"method": "rounds", "pseudo_weight": 0.0, "contrast": ContrastOptions(weight=0.1)}
BOTH: dict[str, Any] = {"method": "rounds", "contrast": ContrastOptions(weight=0.1)}
DROPPED: dict[str, Any] = {"method": "consistency", "consistency": ConsistencyOptions(feature_dropout=0.5)}
TERMS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "contrast": (CONTRAST, {"segmentation", "contrast"}),
    "pseudo": (PSEUDO, {"segmentation", "pseudo"}),
    "both": (BOTH, {"segmentation", "pseudo", "contrast"}),
    "mean-teacher": ({"method": "mean-teacher"}, {"segmentation", "mean-teacher"}),
    "mean-teacher and contrast": (BOTH | {"method": "mean-teacher"}, {"segmentation", "mean-teacher", "contrast"}),
    "consistency": ({"method": "consistency", "recipe": "strong"}, {"segmentation", "consistency"}),
    "consistency and contrast": (BOTH | {"method": "consistency"}, {"segmentation", "consistency", "contrast"}),
    "consistency with dropped features": (DROPPED, {"segmentation", "consistency"}),
    "dropped features and contrast": (
        DROPPED | {"contrast": BOTH["contrast"]},
        {"segmentation", "consistency", "contrast"},
    ),
    "copy-paste": ({"method": "copy-paste", "recipe": "strong"}, {"segmentation", "copy-paste"}),
    "copy-paste and contrast": (BOTH | {"method": "copy-paste"}, {"segmentation", "copy-paste", "contrast"}),
}


@pytest.mark.parametrize("name", TERMS)
def test_every_method_trains_and_says_what_it_did(place: Place, tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    changed, terms = TERMS[name]
    method = changed["method"]
    folder = place.selftrain(out, score_withheld=True, **changed)
    model = load_segmenter(folder, device="cpu")
    start = load_segmenter(place.start, device="cpu")
    assert (model.labels, model.preprocessing, model.options) == (start.labels, start.preprocessing, start.options)
    assert model.details["method"] == f"selftrain {method}"
    records = metrics(out)
    losses = [record for record in records if "loss" in record]
    assert len(losses) == (6 if method == "rounds" else 3)
    known = set().union(*(each for _, each in TERMS.values()))
    for record in losses:
        assert known & record.keys() == terms
        total = sum((0.1 if term == "contrast" else 1.0) * record[term] for term in terms)
        assert record["loss"] == pytest.approx(total, rel=1e-5)
    if method != "rounds":
        assert not (out / "rounds").exists()
        return
    first, second = read_rounds(out)
    assert (first.step, second.step, first.cases, first.change) == (0, 3, 3, None)
    assert second.change is not None
    assert second.dice_to_last is not None
    assert None not in (first.validation["after"], second.validation["before"], second.validation["after"])
    assert first.validation["after"] == second.validation["before"]
    for found in (first, second):
        made = read_pseudo_labels(out / "pseudo" / f"round-{found.round:02d}.safetensors")
        assert [case.name for case in made] == sorted(place.unlabelled)
        everything = torch.cat([case.label.flatten() for case in made])
        assert found.coverage == pytest.approx(float((everything != UNUSED).float().mean()))
        assert list(found.area) == list(model.labels.structures)
        assert found.withheld is not None
        assert found.withheld["cases"] == 3
        assert load_segmenter(out / "models" / f"round-{found.round:02d}", device="cpu").labels == model.labels
    assert [r["round"] for r in records if "round" in r] == [1, 2]


def test_round_one_is_the_prediction_of_the_first_segmenter(place: Place, tmp_path: Path) -> None:
    place.selftrain(tmp_path / "run", method="rounds", pseudo=PseudoLabelOptions(guard="off", threshold=0.5))
    start = load_segmenter(place.start, device="cpu")
    dataset = open_dataset(place.data, patient_pattern="(patient[0-9]+)")
    cases = prepare_cases(dataset, sorted(place.unlabelled), start.preprocessing, labels=False)
    made = read_pseudo_labels(tmp_path / "run" / "pseudo" / "round-01.safetensors")
    for case, pseudo in zip(cases, made, strict=True):
        with torch.no_grad():
            sure, classes = start.network(case.slices).softmax(1).max(1)
        assert torch.equal(pseudo.predicted.long(), classes)
        assert torch.equal(pseudo.label == UNUSED, sure < 0.5)


def test_it_says_how_many_slices_the_contrastive_loss_can_use(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place.selftrain(tmp_path / "run", rounds=1, steps=1, **CONTRAST)
    dataset = open_dataset(place.data, patient_pattern="(patient[0-9]+)")
    preprocessing = load_segmenter(place.start, device="cpu").preprocessing
    [labelled] = prepare_cases(dataset, dataset.names[:1], preprocessing, labels=True)
    assert labelled.label is not None
    made = read_pseudo_labels(tmp_path / "run" / "pseudo" / "round-01.safetensors")
    words = []
    for stack in (labelled.label, torch.cat([case.predicted for case in made])):
        shown = [{int(value) for value in image.unique()} for image in stack]
        usable = [s for s in shown if len(s) == 4] or [s for s in shown if s != {0}]
        words.append(f"{len(usable)} of {len(shown)}")
    said = capsys.readouterr().err
    assert f"contrastive pairs are drawn from {words[0]} labelled and {words[1]} unlabelled slices" in said


@pytest.mark.parametrize("changed", [BOTH, {"method": "consistency"}, {"method": "copy-paste"}])
def test_labels_of_unlabelled_and_test_cases_change_nothing(
    place: Place, tmp_path: Path, changed: dict[str, Any]
) -> None:
    """Deleted or replaced by nonsense, they change no byte of metrics, pseudo-labels or models."""
    place.selftrain(tmp_path / "with", **changed)
    data = tmp_path / "data"
    shutil.copytree(place.data, data)
    dataset = open_dataset(place.data, patient_pattern="(patient[0-9]+)")
    without = [case for case in dataset.cases if case.name in place.unlabelled]
    test = dataset.cases[2]
    assert test.label is not None
    (data / test.label.relative_to(dataset.root)).write_bytes(b"nobody reads this")
    content = json.loads((data / "dataset.json").read_text())
    for case in without:
        assert case.label is not None
        (data / case.label.relative_to(dataset.root)).unlink()
        entry = next(e for e in content["training"] if Path(e["image"]).name == case.image.path.name)
        content["training"].remove(entry)
        content.setdefault("unlabeled", []).append(entry["image"])
    (data / "dataset.json").write_text(json.dumps(content))
    selftrain(str(place.start), str(data), tmp_path / "without", split=place.split, **grouped(**{**SHORT, **changed}))
    assert outcome(tmp_path / "with") == outcome(tmp_path / "without")


@pytest.mark.parametrize(
    ("stop", "changed"),
    [
        (1, BOTH),
        (4, BOTH),
        (3, BOTH | {"method": "consistency", "steps": 5}),
        (3, DROPPED | {"steps": 5}),
        (3, BOTH | {"method": "copy-paste", "steps": 5}),
    ],
)
def test_a_killed_run_ends_in_the_same_bytes(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, changed: dict[str, Any]
) -> None:
    changed = changed | {"ema": 0.9}
    place.selftrain(tmp_path / "whole", **changed)

    def die(self: DurationEstimate, step: int) -> None:
        if step == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DurationEstimate, "after", die)
        with pytest.raises(KeyboardInterrupt):
            place.selftrain(tmp_path / "run", **changed)
    resumed = RunOptions(**{**vars(RUN), "resume": True})
    place.selftrain(tmp_path / "run", **changed, run=resumed)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def file_events(work: Callable[[], Path], folder: Path, *, kill_at: int = 0) -> list[str]:
    """Call a function in its own process, killed at a file event in a folder; return the events before it."""
    log = folder.with_name(f"{folder.name}-events")
    child = os.fork()
    if child == 0:
        count = 0
        told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
            if (writes or event in ("os.rename", "os.mkdir", "os.remove")) and str(arguments[0]).startswith(
                str(folder)
            ):
                count += 1
                os.write(told, f"{event} {arguments[0]} {arguments[1]}\n".encode())
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if kill_at else 0)
    return log.read_text().splitlines()


@pytest.mark.slow
def test_kills_in_late_rounds_end_in_the_same_bytes(place: Place, tmp_path: Path) -> None:
    """SIGKILL at writes of rounds 2 and 3: pseudo-labels, round records, checkpoints and models."""
    changed = BOTH | {"ema": 0.9, "rounds": 3}
    whole = tmp_path / "whole"
    seen = file_events(lambda: place.selftrain(whole, **changed), whole)
    late = next(number for number, event in enumerate(seen, 1) if "round-02" in event)
    moments = {
        next(n for n, event in enumerate(seen, 1) if n >= start and word in event)
        for start, word in (
            (late, "pseudo/"), (late, "rename"), (late, "rounds/"), (late, "checkpoints/"), (late, "models/"),
            (next(n for n, event in enumerate(seen, 1) if "round-03" in event), "rename"),
        )
    }  # fmt: skip
    moments |= {(late + len(seen)) // 2, len(seen)}
    assert len(moments) >= 6
    resumed = RunOptions(**{**vars(RUN), "resume": True})
    for moment in sorted(moments):
        run = tmp_path / f"killed-at-{moment}"
        file_events(lambda: place.selftrain(run, **changed), run, kill_at=moment)  # noqa: B023 - called at once
        assert (run / "rounds" / "round-01.json").is_file()
        place.selftrain(run, **changed, run=resumed)
        assert outcome(run) == outcome(whole), seen[moment - 1]


def test_a_collapsed_round_stops_the_run_and_names_the_model_before(place: Place, tmp_path: Path) -> None:
    collapsed = r"(?s)pseudo-labels of round 1 have collapsed: .* is (nearly missing|over-represented)"
    with pytest.raises(UserError, match=collapsed):
        place.selftrain(tmp_path / "run", method="rounds", pseudo=PseudoLabelOptions(least_area=1.0, most_area=1.001))
    assert (tmp_path / "run" / "rounds" / "round-01.json").is_file(), "what was found is written down all the same"


@pytest.mark.parametrize("guard", ["stop", "warn"])
def test_a_network_that_loses_a_structure_is_not_kept(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], guard: Any
) -> None:
    """Without validation, the final weights are compared with the labels on the unlabelled volumes."""
    dataset = open_dataset(place.data, patient_pattern="(patient[0-9]+)")
    split = tmp_path / "split.json"
    write_split(split, Split(dataset.names[:1], (), (), dataset.names[3:]), dataset)
    begun = load_segmenter(place.start, device="cpu").network.state_dict()

    def collapse(self: Pool, network: torch.nn.Module) -> list[str]:
        same = all(torch.equal(value, begun[name]) for name, value in network.state_dict().items())
        return [] if same else ["RV is 0.00% of the pixels"]

    monkeypatch.setattr(Pool, "collapse", collapse)
    model = selftrain(
        str(place.start), str(place.data), tmp_path / "run", split=split,
        **grouped(**{**SHORT, "method": "consistency", "reuse": "whole", "pseudo": PseudoLabelOptions(guard=guard)}),
    )  # fmt: skip
    kept = load_segmenter(model, device="cpu")
    assert all(torch.equal(kept.network.state_dict()[name], value) for name, value in begun.items()) == (
        guard == "stop"
    )
    assert kept.details["weights"].startswith("initial segmenter" if guard == "stop" else "last step")
    assert "warning: on the unlabelled volumes, RV is 0.00% of the pixels" in capsys.readouterr().err


def test_collapse_is_measured_on_the_unlabelled_volumes(place: Place, tmp_path: Path) -> None:
    segmenter = load_segmenter(place.start, device="cpu")
    dataset = open_dataset(place.data, patient_pattern="(patient[0-9]+)")
    labelled = prepare_cases(dataset, dataset.names[:1], segmenter.preprocessing, labels=True)
    others = prepare_cases(dataset, sorted(place.unlabelled), segmenter.preprocessing, labels=False)
    data = TrainingData(segmenter.labels, segmenter.preprocessing, labelled, others)
    with Run(tmp_path / "run", config={}, command="test", options=RUN) as run:
        pool = Pool(run, data, PseudoLabelOptions(guard="warn", most_area=100.0))
        torch.nn.init.zeros_(segmenter.network.head.classify.weight)
        segmenter.network.head.classify.weight.data[0] = 1
        lost = pool.collapse(segmenter.network)
        assert len(lost) == len(segmenter.labels.structures)
        assert all("vanishes" in words or "missing" in words for words in lost)
        assert Pool(run, data, PseudoLabelOptions(guard="off")).collapse(segmenter.network) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rounds": 0}, "expected at least one round"),
        ({"method": "copy-paste", "unlabelled_batch": 5}, "expected an even number"),
        (BOTH | {"contrast": ContrastOptions(reduction="official", weight=0.1), "reuse": "none"}, None),
    ],
)
def test_settings(place: Place, tmp_path: Path, changed: dict[str, Any], message: str | None) -> None:
    if message is None:
        place.selftrain(tmp_path / "run", **changed)
        return
    with pytest.raises(UserError, match=message):
        place.selftrain(tmp_path / "run", **changed)


def test_what_does_not_fit_is_refused(place: Place, tmp_path: Path) -> None:
    dataset = open_dataset(place.data, patient_pattern="(patient[0-9]+)")
    nothing = tmp_path / "split.json"
    write_split(nothing, Split(dataset.names[:1]), dataset)
    with pytest.raises(UserError, match="the split has no unlabelled cases"):
        selftrain(str(place.start), str(place.data), tmp_path / "run", split=nothing, **grouped(**SHORT))
    names = tmp_path / "map"
    shutil.copytree(place.data, names)
    content = json.loads((names / "dataset.json").read_text())
    content["labels"] = {value: f"new {name}" for value, name in content["labels"].items()}
    (names / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected the same structures"):
        selftrain(str(place.start), str(names), tmp_path / "run", split=place.split, **grouped(**SHORT))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rounds", "consistency"])
def test_two_processes_train_as_one(place: Place, tmp_path: Path, method: str) -> None:
    words = [
        *("selftrain", str(place.start), str(place.data), "--split", str(place.split), "--method", method),
        *("--rounds", "2"),
        *("--steps", "3", "--batch_size", "4", "--unlabelled_batch", "4", "--pseudo.guard", "off", "--log_every", "1"),
        *("--patient-pattern", "(patient[0-9]+)", "--device", "cpu", "--threads", "1", "--validate_every", "3"),
        *("--lr", "1e-3"),  # with the default, ten times as much, rounding grows beyond the tolerance
    ]
    one, both = alone_and_together(words, tmp_path)
    assert len(one) == len(both)
    for alone, together in zip(one, both, strict=True):
        assert alone.keys() == together.keys()
        # Adam's first steps follow the signs of gradients: rounding grows from step to step.
        tolerance = 1e-4 if alone["step"] == 0 else 2e-2
        for key in {"loss", "pseudo", "segmentation", "validation_dice", "pseudo_area_RV"} & alone.keys():
            assert alone[key] == pytest.approx(together[key], rel=tolerance)


@pytest.mark.parametrize("method", ["rounds", "mean-teacher", "consistency"])
def test_the_segmenter_it_began_with_stays_if_no_step_is_better(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    model = place.selftrain(tmp_path / "run", method=method, reuse="trunk", rounds=1, steps=1, lr=1e-9, keep="best")
    before = max(m["validation_dice"] for m in metrics(place.start) if "validation_dice" in m)
    [after] = [m["validation_dice"] for m in metrics(tmp_path / "run") if "validation_dice" in m]
    assert after < before  # a new head, not trained
    assert "warning: the initial segmenter" in capsys.readouterr().err
    if method == "rounds":
        [found] = read_rounds(tmp_path / "run")
        assert found.validation["before"] == pytest.approx(before)
    begun, kept = (load_segmenter(path, device="cpu").network.state_dict() for path in (place.start, model))
    assert all(torch.equal(kept[name], tensor) for name, tensor in begun.items())
    assert "initial segmenter" in json.loads((model / "model.json").read_text())["metadata"]["details"]["weights"]
    last = place.selftrain(tmp_path / "last", method=method, reuse="trunk", rounds=1, steps=1, lr=1e-9, keep="last")
    changed = load_segmenter(last, device="cpu").network.state_dict()
    lost = before - after > 0.05  # much worse than what it began with is not kept unasked
    assert lost == all(torch.equal(changed[name], tensor) for name, tensor in begun.items())


def test_better_weights_than_those_it_began_with_are_kept(place: Place, tmp_path: Path) -> None:
    model = place.selftrain(tmp_path / "run", method="rounds", rounds=2, steps=40, reuse="whole")
    scores = [m["validation_dice"] for m in metrics(tmp_path / "run") if "validation_dice" in m]
    [first, _] = read_rounds(tmp_path / "run")
    words = json.loads((model / "model.json").read_text())["metadata"]["details"]["weights"]
    assert max(scores) >= (first.validation["before"] or 0)
    assert re.fullmatch(rf"best step \(\d+\), validation Dice {max(scores):.3f}", words)
