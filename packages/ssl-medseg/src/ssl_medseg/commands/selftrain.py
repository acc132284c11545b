"""Self-training with pseudo-labels in rounds: `ssl-medseg selftrain`. One readable loop; copy it and change it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions
from ssl_medseg.datasets import DataOptions, open_with
from ssl_medseg.losses.segmentation import SegmentationLoss, segmentation_loss
from ssl_medseg.models.checkpoint import Segmenter, load_segmenter, save_segmenter
from ssl_medseg.preprocessing.cases import prepare_cases
from ssl_medseg.selftraining.contrast import ContrastTerm
from ssl_medseg.selftraining.options import ContrastOptions, Method, Norm, PseudoLabelOptions, TeacherOptions
from ssl_medseg.selftraining.pool import Pool
from ssl_medseg.selftraining.rounds import score_withheld_labels
from ssl_medseg.selftraining.student import Scoring, Student
from ssl_medseg.selftraining.terms import ConsistencyTerm, PseudoTerm, Term
from ssl_medseg.training.augment import AugmentOptions
from ssl_medseg.training.data import TrainingData, open_training_data
from ssl_medseg.training.optim import Pace, Schedule
from ssl_medseg.training.slices import SegmentationBatches, slices_with


def selftrain(  # noqa: PLR0915 - the whole of a run, to be read from top to bottom
    model: str,
    data: str,
    split: Path,
    out: Path,
    *,
    method: Method = "pseudo",
    rounds: int = 3,
    steps: int = 5000,
    batch_size: int = 20,
    unlabelled_batch: int = 20,
    pseudo_weight: float = 1.0,
    lr: float = 1e-2,
    schedule: Schedule = "cosine",
    loss: SegmentationLoss = "dice",
    least_classes: int = 1,
    start: Literal["trunk", "whole"] = "trunk",
    norm: Norm = "apart",
    validate_every: int = 50,
    keep: Literal["auto", "best", "last"] = "auto",
    contrast: ContrastOptions = ContrastOptions(),  # noqa: B008 - frozen
    pseudo: PseudoLabelOptions = PseudoLabelOptions(),  # noqa: B008
    teacher: TeacherOptions = TeacherOptions(),  # noqa: B008
    augment: AugmentOptions = AugmentOptions(),  # noqa: B008
    unlabelled_augment: AugmentOptions = AugmentOptions(),  # noqa: B008
    opening: DataOptions = DataOptions(),  # noqa: B008
    cache: Path | None = None,
    score_withheld: bool = False,
    run: RunOptions = RunOptions(),  # noqa: B008
) -> Path:
    """Go on from a trained segmenter with the unlabelled volumes: pseudo-labels, joint training, new pseudo-labels.

    A round begins with the prediction of every unlabelled volume. Then each step adds to the segmentation loss of
    labelled slices what the method says of unlabelled ones: ``contrast`` is the paper's, the local contrastive loss on
    pairs of labelled and unlabelled slices; ``pseudo`` is plain self-training, the segmentation loss on pseudo-labels;
    ``both`` adds the two; ``mean-teacher`` has no pseudo-labels and no rounds, but asks that predictions agree with
    those of the averaged network. Labelled volumes keep
    their true labels, and are not in the pool.

    Files of test cases and labels of unlabelled cases are never opened in training; deleting them changes no byte of
    the result. A run resumes exactly, as one of `train`.

    The run folder holds, beside what every run has: ``rounds/round-NN.json``, the pseudo-labels of a round in numbers;
    ``pseudo/round-NN.safetensors``, the pseudo-labels; ``models/round-NN``, the model at the end of a round.

    Args:
        model: run folder or model folder of the segmenter that makes the first pseudo-labels, as `train` writes it; its
            network and preprocessing are taken over.
        data: the data set, as in `train`.
        split: the split's file.
        out: the run's folder.
        method: how unlabelled slices take part; plain self-training did best on ACDC at 64 pixels.
        rounds: pseudo-labels are made this many times.
        steps: of each round.
        batch_size: labelled slices per step, over all processes.
        unlabelled_batch: unlabelled slices per step for ``pseudo``, ``both`` and ``mean-teacher``.
        pseudo_weight: of the segmentation loss on pseudo-labels.
        lr: learning rate of Adam, the largest of the schedule.
        schedule: ``cosine``: in every round up over the first steps, then down to 0; or ``constant``, at 1e-3 the
            released code's.
        loss: the segmentation loss, as in `train`.
        least_classes: labelled slices that show fewer classes than this, the background included, are not drawn.
        start: with the segmenter's ``trunk`` and a new head, as the released code, or with the ``whole`` network.
        norm: the contrastive images pass on their own and stay out of batch norm's running averages (``apart``), or are
            one batch with the segmented ones (``joint``, the released code; brightened and darkened as they are, they
            cost much in short runs), or in the trunk alone (``trunk``).
        validate_every: steps between two scores on the validation cases.
        keep: the weights with the ``best`` mean foreground Dice on validation, or the ``last``; auto: the best if the
            split has validation cases. If no step scores as high as the segmenter given, that one is kept. The best
            of a round also makes the pseudo-labels of the next; training itself goes on from the last weights.
        contrast: the local contrastive loss.
        pseudo: how pseudo-labels are made, cleaned and guarded.
        teacher: an average of the weights.
        augment: of the labelled slices.
        unlabelled_augment: of the unlabelled slices, with their pseudo-labels.
        opening: how to open the data set.
        cache: a folder that keeps prepared volumes, which runs may share.
        score_withheld: when training is over, open such labels as the unlabelled cases do have, and write the Dice of
            the pseudo-labels with them into the rounds: for studies of the method.
        run: seed, device, precision, checkpoints, logs.

    Returns:
        The folder of the trained segmenter.
    """
    config = dict(locals())
    _check(rounds=rounds, steps=steps, lr=lr, validate_every=validate_every, pseudo_weight=pseudo_weight)
    found = load_segmenter(model, device="cpu")
    seen = open_training_data(
        data, split, opening=opening, preprocessing=found.preprocessing, unlabelled=True, cache=cache
    )
    _check_data(seen, found, model=model, split=split, keep=keep)
    classes, slices = len(seen.labels), seen.slices()
    contrasts, pseudo_labels = method in ("contrast", "both"), method in ("pseudo", "both")
    teaches = method == "mean-teacher"
    total = steps if teaches else rounds * steps
    with Run(out, config=config, command="ssl-medseg selftrain", options=run, free=("cache", "score_withheld")) as r:
        for note in seen.notes:
            r.say(note)
        batches = SegmentationBatches(
            r, slices, classes=classes, pool=slices_with(slices, classes=classes, least=least_classes),
            batch_size=batch_size, augment=augment,
        )  # fmt: skip
        criterion = segmentation_loss(loss, classes=classes)
        student = Student(
            r, found, start=start, embedding=contrast.embedding if contrasts else 0, norm=norm, lr=lr,
            schedule=schedule, cycle=steps, decay=teacher.decay or (0.99 if teaches else 0.0), steps=total,
        )  # fmt: skip
        scoring, pool = Scoring(r, seen.validate_with(r), every=validate_every), Pool(r, seen, pseudo)
        r.track(pool=pool)
        pace = Pace(r, total, each=f"{batch_size} labelled slices and the unlabelled ones")

        def save(folder: str, chosen: str) -> Path:
            return save_segmenter(
                r, student.kept, options=found.options, labels=seen.labels, preprocessing=seen.preprocessing,
                details={"method": f"selftrain {method}", "labelled": list(slices.names), "steps": total,
                         "unlabelled": [case.name for case in seen.unlabelled], "weights": chosen}, folder=folder,
            )  # fmt: skip

        def terms_of_round() -> dict[str, Term]:
            terms: dict[str, Term] = {}
            if pseudo_labels:
                terms["pseudo"] = PseudoTerm(
                    r, pool, classes=classes, batch_size=unlabelled_batch, augment=unlabelled_augment,
                    criterion=criterion, weight=pseudo_weight,
                )  # fmt: skip
            if teaches:
                terms["consistency"] = ConsistencyTerm(
                    r, pool.slices, student.kept, batch_size=unlabelled_batch, steps=total, options=teacher
                )
            if contrasts:
                terms["contrast"] = ContrastTerm(r, slices, pool.slices, classes=classes, options=contrast)
                r.say(str(terms["contrast"]))
            return terms

        terms: dict[str, Term] = {}
        for step in r.steps(total, samples_per_step=batch_size):
            if step == 0:
                scoring.begin(found.network.to(r.device))
            if step % steps == 0 and not teaches:
                by = f"the segmenter {Path(model).name}" if step == 0 else f"this run, {scoring.words(step)}"
                source = found.network.to(r.device) if step == 0 else student.kept
                score = scoring.begun.score if step == 0 else scoring.best_of_round.score
                r.record(**pool.refresh(source, scoring.best_of_round, step=step, made_by=by, score=score))
                scoring.best_of_round.reset()
                terms = {}
            terms = terms or terms_of_round()
            batch = batches.at(step)
            more = {name: term.images(step) for name, term in terms.items()}
            images = torch.cat([batch.images, *more.values()])
            logits, embedding = student.model(images, len(images) - len(more.get("contrast", ())))
            losses = {"segmentation": criterion(logits[: len(batch.images)], batch.shares)}
            for name, term in terms.items():
                output = embedding if name == "contrast" else logits[len(batch.images) :]
                losses[name] = term.loss(output, step)
            weights = {"segmentation": 1.0} | {name: term.weight for name, term in terms.items()}
            value = torch.stack([weights[name] * each for name, each in losses.items()]).sum()
            student.update(r, value)
            r.log(loss=value, **losses)
            pace.after(step)
            ends_round = (step + 1) % steps == 0
            scoring.after(step, student.kept, ends_round=ends_round)
            if ends_round and not teaches:
                pool.finish(scoring.best_of_round)
                save(f"models/round-{pool.round:02d}", f"the last of round {pool.round}")
        chosen = scoring.choose(student.kept, keep=keep, steps=total)
        r.say(f"weights kept: {chosen}")
        target = save("model", chosen)
    if score_withheld and r.is_main and not teaches:
        _score_withheld(out, data, seen, opening=opening, cache=cache)
    return target


def _score_withheld(out: Path, data: str, seen: TrainingData, *, opening: DataOptions, cache: Path | None) -> None:
    dataset = open_with(data, opening)
    known = [case.name for case in seen.unlabelled if dataset.case(case.name).label is not None]
    cases = prepare_cases(dataset, known, seen.preprocessing, labels=True, cache=cache)
    labels = {case.name: case.label for case in cases if case.label is not None}
    score_withheld_labels(out, seen.labels.structures, labels)


def _check(*, rounds: int, steps: int, lr: float, validate_every: int, pseudo_weight: float) -> None:
    if min(rounds, steps, validate_every) < 1 or not 0 < lr < float("inf") or not 0 < pseudo_weight < float("inf"):
        raise UserError(
            "selftrain needs rounds, steps and validate_every of at least 1, lr and pseudo_weight above 0; got "
            f"{rounds}, {steps}, {validate_every}, {lr} and {pseudo_weight}"
        )


def _check_data(seen: TrainingData, found: Segmenter, *, model: str, split: Path, keep: str) -> None:
    if found.labels != seen.labels:
        raise UserError(
            f"{model} segments {found.labels}, the data set has {seen.labels}; expected the same structures and values"
        )
    if not seen.unlabelled:
        raise UserError(f"{split}: names no unlabelled case, so there is nothing to learn from beside the labels")
    if keep == "best" and not seen.validation:
        raise UserError(f"{split}: names no validation case, so there is no best step; use --keep last")
