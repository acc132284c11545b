"""Read the folder of a run: configuration, metrics, timing, models, scores, evaluations, number of labels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import Any, Literal

from contrastive_core.app.report.run_record import read_record
from contrastive_core.errors import UserError
from contrastive_core.training.config import from_plain
from contrastive_core.training.documents import read_json, reading
from ssl_vision.data import open_images
from ssl_vision.data.bad_files import read_log
from ssl_vision.data.dataset import ReadOptions
from ssl_vision.evaluation.predictions import Predictions, read_predictions
from ssl_vision.evaluation.scores import ClassifierScore, Score, read_classifier_score
from ssl_vision.labels.files import LabelFile, read_label_file
from ssl_vision.models.model_folder import PIXELS
from ssl_vision.training.options import AugmentOptions

Kind = Literal["pretrain", "finetune", "distill"]


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run that a report uses; `config` holds all of them, `kind` is the command."""

    kind: Kind
    config: Mapping[str, Any]
    data: str
    part: str
    encoder: str
    epochs: int
    batch_size: int
    image_size: int
    seed: int

    @property
    def augment(self) -> AugmentOptions:
        """Augmentation that makes the views in a run of `pretrain`."""
        return AugmentOptions(**self.config["augment"])

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return int(self.config["encoder"].get("image_channels", 3))

    @property
    def read(self) -> ReadOptions:
        """Options for reading image files."""
        settings = self.config.get("read") or {}
        return ReadOptions(
            **{field.name: settings[field.name] for field in fields(ReadOptions) if field.name in settings}
        )

    @property
    def memory(self) -> int:
        """Size of SimCLRv2's memory, in a run of `pretrain`; 0: no memory."""
        return int((self.config.get("memory") or {}).get("projections", 0))

    @property
    def labels(self) -> str | None:
        """Label file; None if all labels are used."""
        value = self.config.get("labels")
        return None if value is None else str(value)


@dataclass(frozen=True)
class RunFolder:
    """Content of a run folder, finished or not.

    Attributes:
        path: Run folder.
        settings: Settings of the run.
        records: Records of ``metrics.jsonl``.
        sessions: Hardware and software of each start.
        seconds: Time spent in training steps; None if nothing was logged.
        bad_files: Unreadable images with the reason.
    """

    path: Path
    settings: RunSettings
    records: list[dict[str, int | float]]
    sessions: list[dict[str, Any]]
    seconds: float | None
    bad_files: Mapping[int, str]

    @property
    def has_model(self) -> bool:
        """Whether training has finished and written its model."""
        return (self.path / "model" / "model.json").is_file()

    @property
    def epoch(self) -> float:
        """Epoch of the last record."""
        return float(self.records[-1].get("epoch", 0)) if self.records else 0.0


@dataclass(frozen=True)
class RunScore:
    """Score of one model.

    Attributes:
        epoch: Epoch of the model; None for raw pixels.
        score: Score of the evaluation.
    """

    epoch: int | None
    score: Score

    @property
    def protocol(self) -> str:
        """Key of an evaluation: protocol, data and settings."""
        return json.dumps([self.score.protocol, self.score.data, self.score.settings], sort_keys=True, default=str)


def data_name(spec: str) -> str:
    """Return the name of a data set: that of a named one, else the last part of its path."""
    name, colon, _ = spec.partition(":")
    return name if colon and len(name) > 1 else PurePath(spec).name or spec


def open_run(path: Path) -> RunFolder:
    """Read the folder of a run of `ssl-vision pretrain`, `finetune` or `distill`.

    Raises:
        UserError: It is not a run folder, or its files are damaged.
    """
    record = read_record(path, made_by="`ssl-vision pretrain`, `finetune` or `distill`")
    return RunFolder(
        path=path,
        settings=_settings(path / "config.yaml", record.config),
        records=record.records,
        sessions=record.sessions,
        seconds=record.seconds,
        bad_files=read_log(path / "bad_files.jsonl"),
    )


def read_scores(run: RunFolder) -> list[RunScore]:
    """Read every score of features under ``RUN/evaluation`` and ``RUN/models/epoch-*/evaluation``.

    Raw pixels come first, then models by epoch. Evaluations of classifiers are read by `read_evaluations`.

    Raises:
        UserError: A file is not a score.
    """
    scores = []
    for file in sorted(run.path.glob("evaluation/[!.]*.json")):
        score = _read_score(file)
        if score is not None:
            scores.append(RunScore(None if score.model == PIXELS else run.settings.epochs, score))
    for file in sorted(run.path.glob("models/epoch-*/evaluation/[!.]*.json")):
        number = re.fullmatch(r"epoch-(\d+)", file.parents[1].name)
        score = _read_score(file)
        if number and score is not None:
            scores.append(RunScore(int(number[1]), score))
    return sorted(scores, key=lambda s: (-1 if s.epoch is None else s.epoch, s.protocol))


def _read_score(file: Path) -> Score | None:
    content = read_json(file)
    remedy = "expected a file of `ssl-vision knn` or `ssl-vision linear`; remove it or evaluate again"
    with reading(file, "found no score", remedy):
        return None if "format" in content else from_plain(Score, content, "score")


def _settings(file: Path, config: Mapping[str, Any]) -> RunSettings:
    remedy = "expected the unchanged file of `ssl-vision pretrain`, `finetune` or `distill`"
    with reading(file, "is not the configuration of a run of ssl-vision", remedy):
        return RunSettings(
            kind=_kind(config),
            config=config,
            data=str(config["data"]),
            part=str(config["part"]),
            encoder=str(config["encoder"]["name"]),
            epochs=int(config["training"]["epochs"]),
            batch_size=int(config["training"]["batch_size"]),
            image_size=int(config["training"]["image_size"]),
            seed=int(config["run"]["seed"]),
        )


def _kind(config: Mapping[str, Any]) -> Kind:
    """Identify the command of a configuration by the setting that only it has."""
    settings: dict[str, Kind] = {"teacher": "distill", "from_layer": "finetune", "augment": "pretrain"}
    kind = next((kind for setting, kind in settings.items() if setting in config), None)
    if kind is None:
        raise KeyError("augment")
    if kind == "pretrain":
        AugmentOptions(**config["augment"])
    return kind


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of a classifier.

    Attributes:
        file: JSON file.
        score: Score in it.
    """

    file: Path
    score: ClassifierScore

    @property
    def name(self) -> str:
        """Name of the images."""
        seen = " (used for validation)" if self.score.validation_share else ""
        return f"{data_name(self.score.data)}, split {self.score.split}{seen}"

    @property
    def images(self) -> tuple[str, str]:
        """Key of the images; scores of the same images can be compared."""
        return self.score.data, self.score.split

    def predictions(self) -> Predictions | None:
        """Read the probabilities beside it; None if the file is missing.

        Raises:
            UserError: The file is damaged.
        """
        file = self.file.with_name(f"{self.file.stem}-predictions.npz")
        return read_predictions(file) if file.is_file() else None


def read_evaluations(run: Path) -> list[Evaluated]:
    """Read every evaluation in ``RUN/evaluation``, the one with most images first.

    Raises:
        UserError: A file is damaged.
    """
    pairs = [(file, read_classifier_score(file)) for file in sorted(run.glob("evaluation/[!.]*.json"))]
    evaluated = [Evaluated(file, score) for file, score in pairs if score is not None]
    return sorted(evaluated, key=lambda e: (-e.score.images, e.file.name))


_DEEPEST = 5  # teachers of teachers


def count_labels(settings: RunSettings, *, depth: int = 0) -> int | None:
    """Count the labelled images of training; for a distilled network those of its teacher or its own, if more.

    None if the number is unknown because a label file, the data or the teacher's run are missing.
    """
    if settings.kind != "distill":
        return _count_listed(settings)
    own = 0 if settings.config.get("alpha", 1.0) == 1 else _count_listed(settings)
    try:
        teacher = run_of(Path(str(settings.config["teacher"])))
        behind = count_labels(open_run(teacher).settings, depth=depth + 1) if depth < _DEEPEST else None
    except UserError:
        behind = None
    return None if behind is None or own is None else max(own, behind)


def run_of(model: Path) -> Path:
    """Return the run folder of a model folder."""
    return model.parent if model.name == "model" else model


def _count_listed(settings: RunSettings) -> int | None:
    try:
        if settings.labels is None:
            return len(open_images(settings.data, split=settings.part))
        content = read_label_file(Path(settings.labels))
    except UserError:
        return None
    return len(content.images) if isinstance(content, LabelFile) else len(content)
