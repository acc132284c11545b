"""Manage the rounds of self-training: pseudo-labels, their pool and statistics, and the guard against collapse."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.pseudo_label import PseudoLabels, agreement, class_thresholds, fuse, hard_labels, is_confident
from contrastive_core.text import several, some_of
from contrastive_core.training import Run
from contrastive_core.training.config import from_plain
from contrastive_core.training.documents import read_json, reading
from contrastive_core.training.files import write_atomic
from ssl_medseg.evaluation.metrics import class_dice
from ssl_medseg.models.network import slice_probabilities
from ssl_medseg.preprocessing.cases import PreparedCase
from ssl_medseg.selftraining.crf import SETTINGS, refine
from ssl_medseg.selftraining.options import PseudoLabelOptions
from ssl_medseg.training.data import TrainingData
from ssl_medseg.training.optim import BestWeights
from ssl_medseg.training.slices import SliceSet, stack_slices

UNUSED = 255
"""Value of unused pixels in a pseudo-label; losses ignore them."""

_FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,))


@dataclass(frozen=True)
class PseudoCase:
    """Pseudo-label of a case.

    Attributes:
        name: Name of the case.
        label: uint8 [S, H, W]; `UNUSED` where the prediction is not confident enough.
        predicted: uint8 [S, H, W], the prediction at every pixel.
        view_dice: Agreement of the views, as mean Dice over structures; None with a single view.
        rejected: Number of slices whose CRF result was rejected.
    """

    name: str
    label: Tensor
    predicted: Tensor
    view_dice: float | None = None
    rejected: int = 0

    @property
    def used(self) -> bool:
        """Whether any pixel is used."""
        return bool((self.label != UNUSED).any())


def make_pseudo_labels(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    options: PseudoLabelOptions,
) -> list[PseudoCase]:
    """Predict every slice of some cases, refine the result and select the pixels to use.

    The result is deterministic, and no label of `cases` is read.

    Raises:
        UserError: No pixel of any case is used.
    """
    predictions = [_predict(network, case, options) for case in cases]
    classes = torch.cat([labels.classes.flatten() for labels, *_ in predictions])
    confidence = torch.cat([labels.confidence.flatten() for labels, *_ in predictions])
    number = predictions[0][3]
    thresholds = torch.full((number,), options.threshold)
    if options.class_share < 1:
        every = PseudoLabels(classes, confidence, torch.ones_like(classes, dtype=torch.bool))
        thresholds = class_thresholds(every, share=options.class_share, num_classes=number, least=options.threshold)
    pseudo_cases = []
    for case, (labels, rejected, view_dice, _) in zip(cases, predictions, strict=True):
        predicted = labels.classes.to(torch.uint8)
        keep = labels.keep & is_confident(labels.classes, labels.confidence, thresholds)
        if view_dice is not None and view_dice < options.case_dice:
            keep = torch.zeros_like(keep)
        label = torch.where(keep, predicted, torch.tensor(UNUSED, dtype=torch.uint8))
        pseudo_cases.append(PseudoCase(case.name, label, predicted, view_dice, rejected))
    if not any(case.used for case in pseudo_cases):
        best = max((case.view_dice or 0.0 for case in pseudo_cases), default=0.0)
        raise UserError(
            f"found no usable pixel in {several(len(pseudo_cases), 'unlabelled case')}: pseudo.case_dice is "
            f"{options.case_dice} and the best agreement of a case's views is {best:.2f}; pseudo.threshold is "
            f"{options.threshold}, pseudo.agreement is {options.agreement}. Lower these values, or train the first "
            "network longer"
        )
    return pseudo_cases


def _predict(
    network: nn.Module, case: PreparedCase, options: PseudoLabelOptions
) -> tuple[PseudoLabels, int, float | None, int]:
    """Return classes with their confidence, the number of rejected CRF slices, the Dice of the views, and C."""
    flips = _FLIPS[: options.predictions]
    views = torch.stack(
        [slice_probabilities(network, case.slices.flip(list(flip))).cpu().flip(list(flip)) for flip in flips]
    )
    probabilities = fuse(views)
    labels, rejected = hard_labels(probabilities), 0
    if options.crf != "off":
        refined = refine(case.slices, probabilities, SETTINGS[options.crf])
        # The confidence of the network in the class that the CRF chose; after the CRF nearly all probabilities are 1.
        confidence = probabilities.gather(1, refined.labels[:, None])[:, 0]
        labels = PseudoLabels(refined.labels, confidence, torch.ones_like(confidence, dtype=torch.bool))
        rejected = int(refined.rejected.sum())
    if options.agreement:
        labels = labels._replace(keep=labels.keep & (agreement(views) >= options.agreement))
    view_dice = None if len(flips) == 1 else _agreement_of_views(views)
    return labels, rejected, view_dice, probabilities.shape[1]


def _agreement_of_views(views: Tensor) -> float:
    """Return the Dice of the first view with the others, averaged over the views and the structures found."""
    labels = views.argmax(2)
    scores = np.array([class_dice(labels[0], other, classes=views.shape[2])[1:] for other in labels[1:]])
    return 0.0 if np.isnan(scores).all() else float(np.nanmean(scores))


def write_pseudo_labels(path: Path, pseudo_cases: Sequence[PseudoCase]) -> None:
    """Write the pseudo-labels of a round as tensors NAME (used pixels) and NAME.predicted."""
    tensors = {case.name: case.label.clone(memory_format=torch.contiguous_format) for case in pseudo_cases}
    tensors |= {
        f"{case.name}.predicted": case.predicted.clone(memory_format=torch.contiguous_format) for case in pseudo_cases
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, safetensors.torch.save(tensors))


def read_pseudo_labels(path: Path) -> list[PseudoCase]:
    """Read the file of `write_pseudo_labels`, sorted by name; it holds neither `view_dice` nor `rejected`.

    Raises:
        UserError: The file does not exist or is damaged.
    """
    with reading(path, "cannot be read as pseudo-labels", "start the run again"):
        tensors = safetensors.torch.load_file(path)
    names = [name for name in tensors if f"{name}.predicted" in tensors]
    return [PseudoCase(name, tensors[name], tensors[f"{name}.predicted"]) for name in sorted(names)]


FORMAT = "ssl-medseg round 1"


@dataclass
class Round:
    """Statistics of the pseudo-labels of one round.

    Attributes:
        round: Number of the round, from 1.
        step: Training step at which the pseudo-labels were made.
        made_by: Description of the network that predicted them.
        cases: Number of unlabelled cases.
        used: Number of cases with at least one used pixel.
        slices: Number of slices of the unlabelled cases.
        coverage: Fraction of their pixels that is used.
        covered: Structure -> fraction of its predicted pixels that is used; None if it was not predicted.
        area: Structure -> fraction of all pixels predicted as this structure.
        labelled_area: Structure -> fraction of all pixels of the labelled cases.
        missing: Structure -> number of cases in which it was not predicted.
        change: Fraction of the pixels whose prediction differs from the last round; None in the first.
        dice_to_last: Structure -> Dice with the prediction of the last round, over all pixels.
        view_dice: Mean agreement of the views, if there are several.
        crf: CRF setting, and the number of slices whose CRF result was rejected because it would have erased a class.
        validation: Mean Dice over the structures on the validation cases: ``before``, of the network that made the
            pseudo-labels, and ``after``, at the end of the round.
        warnings: Warnings about implausible pseudo-labels.
        withheld: Dice of the pseudo-labels with the true labels, if `score_withheld` was requested.
    """

    round: int
    step: int
    made_by: str
    cases: int
    used: int
    slices: int
    coverage: float
    covered: dict[str, float | None]
    area: dict[str, float]
    labelled_area: dict[str, float]
    missing: dict[str, int]
    change: float | None = None
    dice_to_last: dict[str, float | None] | None = None
    view_dice: float | None = None
    crf: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, float | None] = field(default_factory=lambda: {"before": None, "after": None})
    warnings: list[str] = field(default_factory=list)
    withheld: dict[str, Any] | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The values that the run logs."""
        values = {"round": self.round, "pseudo_coverage": self.coverage}
        values |= {f"pseudo_area_{name.replace(' ', '_')}": share for name, share in self.area.items()}
        return values | ({} if self.change is None else {"pseudo_change": self.change})

    def __str__(self) -> str:
        """Summarise the round in one line, for the log."""
        areas = ", ".join(f"{name} {share:.2%}" for name, share in self.area.items())
        changed = "" if self.change is None else f", {self.change:.2%} of the pixels changed"
        refused = self.crf.get("refused_slices", 0)
        return (
            f"round {self.round}: pseudo-labels for {self.used} of {self.cases} volumes, predicted by {self.made_by}; "
            f"{self.coverage:.1%} of the pixels used, areas {areas}{changed}"
            + (f"; CRF result rejected on {refused} slices" if refused else "")
        )


def describe(
    number: int,
    pseudo_cases: Sequence[PseudoCase],
    last: Sequence[PseudoCase] | None,
    *,
    step: int,
    made_by: str,
    structures: Sequence[str],
    labelled: Sequence[Tensor],
    options: PseudoLabelOptions,
) -> Round:
    """Compute the statistics of a round.

    Args:
        number: Number of the round, from 1.
        pseudo_cases: Pseudo-labels of the round.
        last: Pseudo-labels of the last round, the same cases in the same order; None in the first.
        step: Training step.
        made_by: Description of the network that predicted them.
        structures: Names, without the background.
        labelled: True labels [S, H, W] of the labelled cases.
        options: Options the pseudo-labels were made with.
    """
    predicted, used = (
        torch.cat([getattr(case, key).flatten() for case in pseudo_cases]) for key in ("predicted", "label")
    )
    truth = torch.cat([label.flatten() for label in labelled])
    area, labelled_area, covered = {}, {}, {}
    for number_, name in enumerate(structures, start=1):
        mask = predicted == number_
        area[name], labelled_area[name] = float(mask.float().mean()), float((truth == number_).float().mean())
        covered[name] = float((used[mask] != UNUSED).float().mean()) if bool(mask.any()) else None
    round_ = Round(
        round=number, step=step, made_by=made_by, cases=len(pseudo_cases), used=sum(case.used for case in pseudo_cases),
        slices=sum(len(case.label) for case in pseudo_cases), coverage=float((used != UNUSED).float().mean()),
        covered=covered, area=area, labelled_area=labelled_area,
        missing={
            name: sum(not bool((case.predicted == c).any()) for case in pseudo_cases)
            for c, name in enumerate(structures, start=1)
        },
        crf={"setting": options.crf, "refused_slices": sum(case.rejected for case in pseudo_cases)},
    )  # fmt: skip
    agreements = [case.view_dice for case in pseudo_cases if case.view_dice is not None]
    if agreements:
        round_.view_dice = sum(agreements) / len(agreements)
    if last is not None:
        before = torch.cat([case.predicted.flatten() for case in last])
        round_.change = float((before != predicted).float().mean())
        scores = class_dice(before, predicted, classes=len(structures) + 1)[1:].tolist()
        round_.dice_to_last = {
            name: None if math.isnan(score) else score for name, score in zip(structures, scores, strict=True)
        }
    round_.warnings = _warnings(round_, options)
    return round_


def _warnings(round_: Round, options: PseudoLabelOptions) -> list[str]:
    if options.guard == "off":
        return []
    texts = []
    for name, share in round_.area.items():
        expected = round_.labelled_area[name]
        if share < options.least_area * expected:
            texts.append(
                f"{name} is nearly missing ({share:.2%} of the pixels of the pseudo-labels, {expected:.2%} in the "
                "labelled cases)"
            )
        elif share > options.most_area * expected:
            texts.append(
                f"{name} is over-represented ({share:.2%} of the pixels of the pseudo-labels, {expected:.2%} in the "
                "labelled cases)"
            )
    return texts


def check_round(round_: Round, options: PseudoLabelOptions, *, model: Path | None) -> None:
    """Stop the run if its pseudo-labels have collapsed and the guard is set to ``stop``.

    Args:
        round_: Statistics of the round.
        options: Options with the guard.
        model: Model of the last round, which the message names; None in the first round.

    Raises:
        UserError: A class is nearly missing or over-represented, and the guard is ``stop``.
    """
    if options.guard != "stop" or not round_.warnings:
        return
    where = "" if model is None else f" The model of the previous round is in {model}."
    raise UserError(
        f"the pseudo-labels of round {round_.round} have collapsed: {'; '.join(round_.warnings)}. Training on them "
        f"would make it worse.{where} Train the first network longer or on more labels, or shorten the rounds. If the "
        "unlabelled cases really look like this, continue with --pseudo.guard warn"
    )


def write_round(folder: Path, round_: Round) -> Path:
    """Write the statistics of a round to ``rounds/round-NN.json`` in the run folder."""
    path = folder / "rounds" / f"round-{round_.round:02d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps({"format": FORMAT, **asdict(round_)}, indent=1) + "\n").encode())
    return path


def read_rounds(folder: Path) -> list[Round]:
    """Read the statistics of all rounds of a run, in order; empty if it has none.

    Raises:
        UserError: A file does not describe a round.
    """
    rounds = []
    for path in sorted((folder / "rounds").glob("round-*.json")):
        content = read_json(path)
        with reading(path, "is damaged", "expected the JSON of a round; restore it from a copy"):
            if content.pop("format") != FORMAT:
                raise UserError(f"{path}: found another format, expected {FORMAT!r}; it was written by another version")
            rounds.append(from_plain(Round, content, "round"))
    return rounds


def pseudo_file(folder: Path, number: int) -> Path:
    """Return the path of the pseudo-labels of a round."""
    return folder / "pseudo" / f"round-{number:02d}.safetensors"


def score_withheld_labels(folder: Path, structures: Sequence[str], truth: Mapping[str, Tensor]) -> list[float]:
    """Add the Dice of the pseudo-labels with the true labels to the rounds of a finished run.

    Dice is computed per structure over all pixels of a case. A structure that is present in only one of the two scores
    0; a structure that is present in neither is left out.

    Args:
        folder: Run folder.
        structures: Names, without the background.
        truth: Case -> true labels, uint8 [S, H, W], for the cases that have them.

    Returns:
        Mean Dice of each round.
    """
    means = []
    for round_ in read_rounds(folder):
        pseudo_cases = read_pseudo_labels(pseudo_file(folder, round_.round))
        per_case = {
            case.name: torch.from_numpy(class_dice(case.predicted, truth[case.name], classes=len(structures) + 1)[1:])
            for case in pseudo_cases
            if case.name in truth
        }
        if not per_case:
            return []
        table = torch.stack(list(per_case.values()))
        by_structure = table.nanmean(0)
        round_.withheld = {
            "cases": len(per_case),
            "mean": float(table.nanmean(1).nanmean()),
            "structures": dict(zip(structures, by_structure.tolist(), strict=True)),
            "by_case": {name: float(scores.nanmean()) for name, scores in per_case.items()},
        }
        write_round(folder, round_)
        means.append(round_.withheld["mean"])
    return means


class Pool:
    """Unlabelled cases and their pseudo-labels; must be tracked, so that a resumed run continues its round.

    Args:
        run: Run whose folder holds the pseudo-labels.
        data: Training data; the unlabelled cases form the pool, and areas are compared with the labelled ones.
        options: Options for making pseudo-labels.

    Attributes:
        round: Number of the current round, from 1; 0 before the first.
    """

    def __init__(self, run: Run, data: TrainingData, options: PseudoLabelOptions) -> None:
        self._run, self._cases, self._options = run, data.unlabelled, options
        self._structures = data.labels.structures
        self._labelled = [case.label for case in data.labelled if case.label is not None]
        self._slices = stack_slices(self._cases)
        self._pseudo_cases: list[PseudoCase] | None = None
        self.round = 0

    @property
    def slices(self) -> SliceSet:
        """Slices with the pseudo-labels of this round, uint8; unused pixels have the value C, the number of classes.

        Before the first round, the slices have no labels.
        """
        if self._pseudo_cases is None:
            return self._slices
        label = torch.cat([case.label for case in self._pseudo_cases])
        unused = torch.tensor(len(self._structures) + 1, dtype=torch.uint8)
        return self._slices.with_labels(torch.where(label == UNUSED, unused, label))

    @property
    def used(self) -> Tensor:
        """Indices of the slices with at least one used pixel, int64."""
        return torch.nonzero((self.slices.truth <= len(self._structures)).flatten(1).any(1)).flatten()

    def refresh(
        self, network: nn.Module, best: BestWeights, *, step: int, made_by: str, score: float | None
    ) -> dict[str, float]:
        """Start a round: make new pseudo-labels and write them to the run folder.

        The predictions use the best weights of the last round, or the current weights if none were scored.

        Returns:
            Statistics of the round, for the metrics.

        Raises:
            UserError: No pseudo-label is used, or the pseudo-labels have collapsed.
        """
        predictor = copy.deepcopy(network)
        best.give(predictor)
        pseudo_cases = make_pseudo_labels(predictor, self._cases, self._options)
        self.round += 1
        round_ = describe(
            self.round, pseudo_cases, self._pseudo_cases, step=step, made_by=made_by, structures=self._structures,
            labelled=self._labelled, options=self._options,
        )  # fmt: skip
        round_.validation["before"] = score
        self._pseudo_cases = pseudo_cases
        if self._run.is_main:
            write_pseudo_labels(pseudo_file(self._run.out, self.round), pseudo_cases)
            write_round(self._run.out, round_)
        for warning in round_.warnings:
            self._run.say(f"warning: round {self.round}: {warning}")
        last = self._run.out / f"models/round-{self.round - 1:02d}"
        check_round(round_, self._options, model=last if self.round > 1 else None)
        self._run.say(str(round_))
        return round_.metrics

    def collapse(self, network: nn.Module) -> list[str]:
        """Describe the structures that are nearly missing or over-represented in the network's predictions."""
        if self._options.guard == "off":
            return []
        plain = replace(PseudoLabelOptions(), least_area=self._options.least_area, most_area=self._options.most_area)
        round_ = describe(
            1, make_pseudo_labels(network, self._cases, plain), None, step=0, made_by="", structures=self._structures,
            labelled=self._labelled, options=plain,
        )  # fmt: skip
        return round_.warnings

    def finish(self, best: BestWeights) -> None:
        """End a round: add its best validation score to its statistics."""
        if self._run.is_main:
            round_ = read_rounds(self._run.out)[self.round - 1]
            round_.validation["after"] = best.score
            write_round(self._run.out, round_)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the round. The pseudo-labels are in the run folder."""
        return {"round": self.round}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            UserError: The pseudo-labels of the round do not exist or belong to other cases.
        """
        self.round = int(state["round"])
        if self.round == 0:
            return
        path = pseudo_file(self._run.out, self.round)
        by_name = {case.name: case for case in read_pseudo_labels(path)}
        missing = [case.name for case in self._cases if case.name not in by_name]
        if missing:
            raise UserError(f"{path} contains no pseudo-label for {some_of(missing)}; start the run again")
        self._pseudo_cases = [by_name[case.name] for case in self._cases]
