"""Rounds of self-training: pseudo-labels, the pool of slices that have them, the record and the guard."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.pseudo_label import PseudoLabels, agreement, class_thresholds, fuse, hard_labels
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
"""Stands in a pseudo-label for pixels that no loss looks at."""

_FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,))


@dataclass(frozen=True)
class PseudoCase:
    """The pseudo-label of a case.

    Attributes:
        name: of the case.
        label: uint8 [S, H, W]; `UNUSED` where a pixel is not sure enough.
        predicted: uint8 [S, H, W], the same before that choice.
        view_dice: how much the views agree, mean Dice over structures; None with one view.
        rejected: slices whose CRF result was refused.
    """

    name: str
    label: Tensor
    predicted: Tensor
    view_dice: float | None = None
    rejected: int = 0

    @property
    def used(self) -> bool:
        """Whether any pixel of it is used."""
        return bool((self.label != UNUSED).any())


def make_pseudo_labels(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    options: PseudoLabelOptions,
) -> list[PseudoCase]:
    """Predict every slice of some cases, clean the result and choose what is used of it.

    Nothing is drawn, and no label of `cases` is read.

    Raises:
        UserError: no case passes `case_dice`.
    """
    found = [_predict(network, case, options) for case in cases]
    classes = torch.cat([labels.classes.flatten() for labels, *_ in found])
    sure = torch.cat([labels.confidence.flatten() for labels, *_ in found])
    number = found[0][3]
    thresholds = torch.full((number,), options.threshold)
    if options.class_share < 1:
        every = PseudoLabels(classes, sure, torch.ones_like(classes, dtype=torch.bool))
        thresholds = class_thresholds(every, share=options.class_share, num_classes=number, least=options.threshold)
    made = []
    for case, (labels, rejected, view_dice, _) in zip(cases, found, strict=True):
        predicted = labels.classes.to(torch.uint8)
        keep = labels.keep & (labels.confidence >= thresholds[labels.classes])
        if view_dice is not None and view_dice < options.case_dice:
            keep = torch.zeros_like(keep)
        label = torch.where(keep, predicted, torch.tensor(UNUSED, dtype=torch.uint8))
        made.append(PseudoCase(case.name, label, predicted, view_dice, rejected))
    if not any(case.used for case in made):
        best = max((case.view_dice or 0.0 for case in made), default=0.0)
        raise UserError(
            f"no pseudo-label of {len(made)} cases is used: pseudo.case_dice {options.case_dice}, the most that a "
            f"case's views agree is {best:.2f}; pseudo.threshold {options.threshold}, pseudo.agreement "
            f"{options.agreement}. Lower them, or train the first network longer"
        )
    return made


def _predict(
    network: nn.Module, case: PreparedCase, options: PseudoLabelOptions
) -> tuple[PseudoLabels, int, float | None, int]:
    """Classes with confidence and agreement, refused CRF slices, agreement of the views, number of classes."""
    flips = _FLIPS[: options.predictions]
    views = torch.stack(
        [slice_probabilities(network, case.slices.flip(list(flip))).cpu().flip(list(flip)) for flip in flips]
    )
    probabilities = fuse(views)
    labels, rejected = hard_labels(probabilities), 0
    if options.crf != "off":
        refined = refine(case.slices, probabilities, SETTINGS[options.crf])
        # How sure the network is of what the CRF chose: after a CRF nearly all is sure.
        confidence = probabilities.gather(1, refined.labels[:, None])[:, 0]
        labels = PseudoLabels(refined.labels, confidence, torch.ones_like(confidence, dtype=torch.bool))
        rejected = int(refined.rejected.sum())
    if options.agreement:
        labels = labels._replace(keep=labels.keep & (agreement(views) >= options.agreement))
    view_dice = None if len(flips) == 1 else _agreement_of_views(views)
    return labels, rejected, view_dice, probabilities.shape[1]


def _agreement_of_views(views: Tensor) -> float:
    """Mean over the other views and the structures found of the Dice with the first view."""
    named = views.argmax(2)
    scores = [label_map_dice(named[0], other, views.shape[2])[1:] for other in named[1:]]
    found = torch.cat(scores)
    return float(found[~found.isnan()].mean()) if bool((~found.isnan()).any()) else 0.0


def label_map_dice(a: Tensor, b: Tensor, classes: int) -> Tensor:
    """`class_dice` of two label maps given as tensors: float64 [C]."""
    return torch.from_numpy(class_dice(a.cpu().numpy(), b.cpu().numpy(), classes=classes))


def write_pseudo_labels(path: Path, made: Sequence[PseudoCase]) -> None:
    """Keep the pseudo-labels of a round: tensors NAME (used pixels) and NAME.predicted."""
    tensors = {case.name: case.label.clone(memory_format=torch.contiguous_format) for case in made}
    tensors |= {f"{case.name}.predicted": case.predicted.clone(memory_format=torch.contiguous_format) for case in made}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, safetensors.torch.save(tensors))


def read_pseudo_labels(path: Path) -> list[PseudoCase]:
    """What `write_pseudo_labels` wrote, by name, without what is not in the file.

    Raises:
        UserError: no such file, or a damaged one.
    """
    with reading(path, "cannot be read as pseudo-labels", "start the run again"):
        tensors = safetensors.torch.load_file(path)
    names = [name for name in tensors if f"{name}.predicted" in tensors]
    return [PseudoCase(name, tensors[name], tensors[f"{name}.predicted"]) for name in sorted(names)]


FORMAT = "ssl-medseg round 1"


@dataclass
class Round:
    """The pseudo-labels of one round in numbers.

    Attributes:
        round: counted from 1.
        step: of the run, in which they were made.
        made_by: whose predictions they are, in words.
        cases: unlabelled cases.
        used: cases of which at least a pixel is used.
        slices: of these cases.
        coverage: share of their pixels that is used.
        covered: structure -> share of the pixels predicted as it that is used; None if none was.
        area: structure -> share of all pixels predicted as it.
        labelled_area: structure -> share of all pixels of the labelled cases.
        missing: structure -> cases in which it was not predicted at all.
        change: share of pixels whose prediction differs from the last round's; None in the first.
        dice_to_last: structure -> Dice with the last round's prediction over all pixels.
        view_dice: mean agreement of the views, if there were several.
        crf: the setting, and how many slices it was refused for, because it would have erased a class.
        validation: mean Dice over the structures on the validation cases: of the network that made the pseudo-labels,
            and at the end of the round.
        warnings: what looks wrong, in words.
        withheld: Dice of the pseudo-labels with the truth, where `score_withheld` was asked for.
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
        """For the run's metrics."""
        values = {"round": self.round, "pseudo_coverage": self.coverage}
        values |= {f"pseudo_area_{name.replace(' ', '_')}": share for name, share in self.area.items()}
        return values | ({} if self.change is None else {"pseudo_change": self.change})

    def __str__(self) -> str:
        """One line for the person watching."""
        areas = ", ".join(f"{name} {share:.2%}" for name, share in self.area.items())
        changed = "" if self.change is None else f", {self.change:.2%} of the pixels changed"
        refused = self.crf.get("refused_slices", 0)
        return (
            f"round {self.round}: pseudo-labels of {self.used} of {self.cases} volumes by {self.made_by}; "
            f"{self.coverage:.1%} of the pixels used, areas {areas}{changed}"
            + (f"; the CRF was refused on {refused} slices" if refused else "")
        )


def describe(
    number: int,
    made: Sequence[PseudoCase],
    last: Sequence[PseudoCase] | None,
    *,
    step: int,
    made_by: str,
    structures: Sequence[str],
    labelled: Sequence[Tensor],
    options: PseudoLabelOptions,
) -> Round:
    """The numbers of a round.

    Args:
        number: of the round, from 1.
        made: its pseudo-labels.
        last: those of the round before, the same cases in the same order; None in the first.
        step: of the run.
        made_by: whose predictions they are.
        structures: names, without the background.
        labelled: true labels [S, H, W] of the labelled cases.
        options: how they were made.
    """
    predicted, used = (torch.cat([getattr(case, key).flatten() for case in made]) for key in ("predicted", "label"))
    truth = torch.cat([label.flatten() for label in labelled])
    area, labelled_area, covered = {}, {}, {}
    for number_, name in enumerate(structures, start=1):
        mine = predicted == number_
        area[name], labelled_area[name] = float(mine.float().mean()), float((truth == number_).float().mean())
        covered[name] = float((used[mine] != UNUSED).float().mean()) if bool(mine.any()) else None
    found = Round(
        round=number, step=step, made_by=made_by, cases=len(made), used=sum(case.used for case in made),
        slices=sum(len(case.label) for case in made), coverage=float((used != UNUSED).float().mean()), covered=covered,
        area=area, labelled_area=labelled_area,
        missing={
            name: sum(not bool((case.predicted == c).any()) for case in made)
            for c, name in enumerate(structures, start=1)
        },
        crf={"setting": options.crf, "refused_slices": sum(case.rejected for case in made)},
    )  # fmt: skip
    agreements = [case.view_dice for case in made if case.view_dice is not None]
    if agreements:
        found.view_dice = sum(agreements) / len(agreements)
    if last is not None:
        before = torch.cat([case.predicted.flatten() for case in last])
        found.change = float((before != predicted).float().mean())
        scores = label_map_dice(before, predicted, len(structures) + 1)[1:].tolist()
        found.dice_to_last = {
            name: None if math.isnan(score) else score for name, score in zip(structures, scores, strict=True)
        }
    found.warnings = _warnings(found, options)
    return found


def _warnings(found: Round, options: PseudoLabelOptions) -> list[str]:
    if options.guard == "off":
        return []
    words = []
    for name, share in found.area.items():
        expected = found.labelled_area[name]
        if share < options.least_area * expected:
            words.append(
                f"{name} is {share:.2%} of the pixels of the pseudo-labels, {expected:.2%} in the labelled cases: it "
                "vanishes"
            )
        elif share > options.most_area * expected:
            words.append(
                f"{name} is {share:.2%} of the pixels of the pseudo-labels, {expected:.2%} in the labelled cases: it "
                "floods them"
            )
    return words


def check_round(found: Round, options: PseudoLabelOptions, *, model: Path | None) -> None:
    """Stop a run whose pseudo-labels have collapsed, if the options say so.

    Args:
        found: the round.
        options: with the guard.
        model: the last model that was written before, which the message names.

    Raises:
        UserError: a class vanishes or floods, and the guard is to stop.
    """
    if options.guard != "stop" or not found.warnings:
        return
    where = "" if model is None else f" The model of the round before is in {model}."
    raise UserError(
        f"the pseudo-labels of round {found.round} have collapsed: {'; '.join(found.warnings)}. Training on them would "
        f"make it worse.{where} Train the first network longer or on more labels, shorten the rounds, or if the "
        "unlabelled cases do look like that, go on with --pseudo.guard warn"
    )


def write_round(folder: Path, found: Round) -> Path:
    """Write ``rounds/round-01.json`` in the run's folder."""
    path = folder / "rounds" / f"round-{found.round:02d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps({"format": FORMAT, **asdict(found)}, indent=1) + "\n").encode())
    return path


def read_rounds(folder: Path) -> list[Round]:
    """The rounds of a run, in order; empty if it has none.

    Raises:
        UserError: a file that is no round.
    """
    found = []
    for path in sorted((folder / "rounds").glob("round-*.json")):
        content = read_json(path)
        with reading(path, "is damaged", "expected the JSON of a round; restore it from a copy"):
            if content.pop("format") != FORMAT:
                raise UserError(f"{path}: found another format, expected {FORMAT!r}; it was written by another version")
            found.append(from_plain(Round, content, "round"))
    return found


def pseudo_file(folder: Path, number: int) -> Path:
    """Where a run keeps the pseudo-labels of a round."""
    return folder / "pseudo" / f"round-{number:02d}.safetensors"


def score_withheld_labels(folder: Path, structures: Sequence[str], truth: Mapping[str, Tensor]) -> list[float]:
    """Add the Dice of the pseudo-labels with the truth to the rounds of a finished run.

    Dice over all pixels of the slices of a case, per structure; a structure that is on one side only scores 0, one that
    is on neither is left out.

    Args:
        folder: of the run.
        structures: names, without the background.
        truth: labels uint8 [S, H, W] by case, of those that have one.

    Returns:
        Mean Dice of each round.
    """
    means = []
    for found in read_rounds(folder):
        made = read_pseudo_labels(pseudo_file(folder, found.round))
        per_case = {
            case.name: label_map_dice(case.predicted, truth[case.name], len(structures) + 1)[1:]
            for case in made
            if case.name in truth
        }
        if not per_case:
            return []
        table = torch.stack(list(per_case.values()))
        by_structure = table.nanmean(0)
        found.withheld = {
            "cases": len(per_case),
            "mean": float(table.nanmean(1).nanmean()),
            "structures": dict(zip(structures, by_structure.tolist(), strict=True)),
            "by_case": {name: float(scores.nanmean()) for name, scores in per_case.items()},
        }
        write_round(folder, found)
        means.append(found.withheld["mean"])
    return means


class Pool:
    """Unlabelled cases and their pseudo-labels; track it, so that a resumed run goes on with those of its round.

    Args:
        run: the run, in whose folder they are kept.
        data: its unlabelled cases are the pool; areas are compared with those of its labelled ones.
        options: how pseudo-labels are made.

    Attributes:
        round: the current one, from 1; 0 before the first.
    """

    def __init__(self, run: Run, data: TrainingData, options: PseudoLabelOptions) -> None:
        self._run, self._cases, self._options = run, data.unlabelled, options
        self._structures = data.labels.structures
        self._labelled = [case.label for case in data.labelled if case.label is not None]
        self._slices = stack_slices(self._cases)
        self._made: list[PseudoCase] | None = None
        self.round = 0

    @property
    def slices(self) -> SliceSet:
        """The slices with the labels of this round: uint8, the number of classes where a pixel is not used.

        Before the first round they have no labels.
        """
        if self._made is None:
            return self._slices
        label = torch.cat([case.label for case in self._made])
        unused = torch.tensor(len(self._structures) + 1, dtype=torch.uint8)
        return self._slices.with_labels(torch.where(label == UNUSED, unused, label))

    @property
    def used(self) -> Tensor:
        """Slices with at least one pixel that is used: int64."""
        return torch.nonzero((self.slices.truth <= len(self._structures)).flatten(1).any(1)).flatten()

    def refresh(
        self, network: nn.Module, best: BestWeights, *, step: int, made_by: str, score: float | None
    ) -> dict[str, float]:
        """Begin a round: predict with the best weights there are, or with the network as it is, and write it down.

        Returns:
            The round in numbers, for the metrics.

        Raises:
            UserError: no pseudo-label passes, or they have collapsed.
        """
        predictor = copy.deepcopy(network)
        best.give(predictor)
        made = make_pseudo_labels(predictor, self._cases, self._options)
        self.round += 1
        found = describe(
            self.round, made, self._made, step=step, made_by=made_by, structures=self._structures,
            labelled=self._labelled, options=self._options,
        )  # fmt: skip
        found.validation["before"] = score
        self._made = made
        if self._run.is_main:
            write_pseudo_labels(pseudo_file(self._run.out, self.round), made)
            write_round(self._run.out, found)
        for warning in found.warnings:
            self._run.say(f"warning: round {self.round}: {warning}")
        last = self._run.out / f"models/round-{self.round - 1:02d}"
        check_round(found, self._options, model=last if self.round > 1 else None)
        self._run.say(str(found))
        return found.metrics

    def collapse(self, network: nn.Module) -> list[str]:
        """Structures that are missing or over-represented in its predictions of the unlabelled cases, in words."""
        if self._options.guard == "off":
            return []
        plain = replace(PseudoLabelOptions(), least_area=self._options.least_area, most_area=self._options.most_area)
        found = describe(
            1, make_pseudo_labels(network, self._cases, plain), None, step=0, made_by="", structures=self._structures,
            labelled=self._labelled, options=plain,
        )  # fmt: skip
        return found.warnings

    def finish(self, best: BestWeights) -> None:
        """End a round: write down the best score in it."""
        if self._run.is_main:
            found = read_rounds(self._run.out)[self.round - 1]
            found.validation["after"] = best.score
            write_round(self._run.out, found)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: which round it is. The pseudo-labels lie in the run's folder."""
        return {"round": self.round}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint.

        Raises:
            UserError: the pseudo-labels of the round are not there, or not of these cases.
        """
        self.round = int(state["round"])
        if self.round == 0:
            return
        path = pseudo_file(self._run.out, self.round)
        by_name = {case.name: case for case in read_pseudo_labels(path)}
        missing = [case.name for case in self._cases if case.name not in by_name]
        if missing:
            raise UserError(f"{path}: holds no pseudo-label of {', '.join(missing[:5])}; start the run again")
        self._made = [by_name[case.name] for case in self._cases]
