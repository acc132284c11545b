"""Train with unlabelled volumes (`ssl-medseg selftrain`), in one loop that is easy to copy and adapt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions
from contrastive_core.training.model_file import module_hash
from ssl_medseg.datasets import DataOptions, open_with
from ssl_medseg.losses.segmentation import segmentation_loss
from ssl_medseg.models.model_folder import Segmenter, load_segmenter, save_segmenter
from ssl_medseg.models.monai import MonaiTrunk
from ssl_medseg.models.network import Refinement
from ssl_medseg.preprocessing.cases import prepare_cases
from ssl_medseg.selftraining.contrast import BatchContrast, ContrastTerm
from ssl_medseg.selftraining.losses import (
    ConsistencyTerm,
    CopyPasteTerm,
    MeanTeacherTerm,
    PseudoTerm,
    TeacherBatches,
    Term,
)
from ssl_medseg.selftraining.options import SelfTrainingOptions
from ssl_medseg.selftraining.rounds import Pool, score_withheld_labels
from ssl_medseg.selftraining.student import Scoring, Student
from ssl_medseg.training.data import PLACES, TrainingData, keep_identity, labels_before, open_training_data
from ssl_medseg.training.optim import DurationEstimate
from ssl_medseg.training.recipe import OptimizerOptions, TrainingOptions, choose
from ssl_medseg.training.slices import AugmentOptions, SegmentationBatches, slices_with
from ssl_medseg.training.validation import choose_refinement


def selftrain(  # noqa: PLR0915 - the whole of a run, to be read from top to bottom
    model: str,
    data: str,
    out: Path,
    *,
    split: Path,
    selftraining: SelfTrainingOptions = SelfTrainingOptions(),  # noqa: B008 - frozen
    training: TrainingOptions = TrainingOptions(),  # noqa: B008
    optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
    augment: AugmentOptions = AugmentOptions(),  # noqa: B008
    opening: DataOptions = DataOptions(),  # noqa: B008
    cache: Path | None = None,
    score_withheld: bool = False,
    run: RunOptions = RunOptions(precision="auto"),  # noqa: B008
) -> Path:
    """Continue training a segmenter with unlabelled volumes.

    Each step adds a loss on unlabelled slices to the segmentation loss on labelled ones:

    - ``consistency``: a mean teacher labels weakly augmented slices in every step, and the student is trained on strong
      augmentations of the same slices, mixed by CutMix, wherever the teacher is confident.
    - ``copy-paste``: boxes are exchanged between labelled and unlabelled slices; the teacher labels the unlabelled
      part.
    - ``rounds``: every round starts by predicting pseudo-labels for all unlabelled volumes. With ``pseudo_weight`` they
      enter the segmentation loss, which is plain self-training; the paper uses
      ``--pseudo-weight 0 --contrast.weight 0.1``.
    - ``mean-teacher``: the student's predictions are trained to agree with those of the averaged network.

    With ``contrast.weight``, the paper's local contrastive loss is added to any of these methods. Labelled volumes keep
    their true labels and are not used as unlabelled ones.

    Training never opens the files of test cases or the labels of unlabelled cases; deleting them does not change a
    single byte of the result. An interrupted run resumes exactly.

    In addition to the usual files, the run folder of ``rounds`` contains ``rounds/round-NN.json`` (statistics of the
    pseudo-labels), ``pseudo/round-NN.safetensors`` (the pseudo-labels) and ``models/round-NN`` (the model at the end of
    the round). With the other methods it contains ``models/last``, the model of the last step.

    Args:
        model: Run folder or model folder of the initial segmenter, as written by `train`. It makes the first
            pseudo-labels; its network and preprocessing are reused.
        data: Data set: a folder in one of the layouts listed by `check`, or a CSV file.
        out: Folder of the run: configuration, metrics, checkpoints, model.
        split: Split file, as written by `ssl-medseg make-splits`.
        selftraining: Options of self-training.
        training: Length of training, batches, loss, and the weights to keep. The best weights of a round also make the
            pseudo-labels of the next one; training itself continues from the last weights.
        optimizer: Optimiser, learning rate, and averaging of the weights.
        augment: Augmentation of the labelled slices.
        opening: Options for opening the data set.
        cache: Folder for preprocessed volumes, which several runs can share.
        score_withheld: After training, open the labels of unlabelled cases, where they exist, and add the Dice of the
            pseudo-labels to the statistics of the rounds, for studies of the method.
        run: Execution of the run: seed, device, precision, checkpoints, logs. Precision ``auto`` means float32 in the
            paper's recipe.

    Returns:
        The folder of the trained segmenter.
    """
    config = dict(locals())
    segmenter = load_segmenter(model, device="cpu")
    training = replace(training, recipe=training.recipe or segmenter.details.get("recipe", "paper"))
    settings = choose(
        training, optimizer, device=run.device, network=segmenter.options, augment=augment, precision=run.precision
    )
    run = replace(run, precision=settings.precision)
    how = selftraining.settled(settings)
    in_rounds, contrast = how.method == "rounds", how.contrast
    if in_rounds and training.steps is None:
        settings = replace(settings, steps=-(-settings.steps // how.rounds))
    training_data = open_training_data(
        data, split, opening=opening, preprocessing=segmenter.preprocessing, unlabelled=True, cache=cache
    )
    oriented = training_data.preprocessing.directions is not None
    settings = settings.for_data(training_data.labels, training_data.labelled, oriented=oriented)
    how = how.for_data(training_data.labels, training_data.labelled, oriented=oriented)
    resolved = settings.values | {"selftraining": how}
    _check_data(training_data, segmenter, how, model=model, split=split, keep=settings.keep)
    classes, slices, unlabelled = (
        len(training_data.labels),
        training_data.slices(),
        how.unlabelled_batch or settings.batch_size,
    )
    total = how.rounds * settings.steps if in_rounds else settings.steps
    free = (*PLACES, "model", "score_withheld")  # data are identified by their content
    with Run(out, config=config, command="ssl-medseg selftrain", options=run, free=free, resolved=resolved) as r:
        keep_identity(r, training_data, model=module_hash(segmenter.network), before=labels_before(model))
        for note in [str(settings), *training_data.notes]:
            r.say(note)

        def labelled(purpose: str, batch_size: int) -> SegmentationBatches:
            return SegmentationBatches(
                r, slices, classes=classes, pool=slices_with(slices, classes=classes, least=settings.least_classes),
                batch_size=batch_size, augment=settings.augment, purpose=purpose, rare_share=settings.rare_share,
            )  # fmt: skip

        batches = labelled("labelled", settings.batch_size)
        criterion = segmentation_loss(settings.loss, classes=classes)
        student = Student(
            r, segmenter, reuse=how.reuse or "whole", embedding=contrast.embedding if contrast.weight else 0,
            norm=how.norm, lr=settings.lr, weight_decay=settings.weight_decay, schedule=settings.schedule,
            cycle=settings.steps, decay=settings.ema or (0.0 if in_rounds else 0.99), steps=total,
        )  # fmt: skip
        validation = training_data.validate_with(r, steps=total, every=settings.validate_every, recipe=settings.recipe)
        scoring, pool = Scoring(r, validation, every=settings.validate_every), Pool(r, training_data, how.pseudo)
        r.track(pool=pool)
        estimate = DurationEstimate(
            r, total, each=f"{settings.batch_size} labelled slices and {unlabelled} unlabelled ones"
        )

        def save(
            folder: str,
            weights: str,
            refinement: Refinement = Refinement(),  # noqa: B008 - frozen
            details: dict[str, Any] | None = None,
        ) -> Path:
            return save_segmenter(
                r, student.network, options=segmenter.options, labels=training_data.labels,
                preprocessing=training_data.preprocessing,
                details={"method": f"selftrain {how.method}", "labelled": list(slices.names), "steps": total,
                         "unlabelled": [case.name for case in training_data.unlabelled], "weights": weights,
                         "recipe": settings.recipe, "effort": settings.effort, "contrast": contrast.weight,
                         **(details or {})},
                refinement=refinement, folder=folder,
            )  # fmt: skip

        def pseudo_labelled(batch_size: int) -> TeacherBatches:
            return TeacherBatches(
                r, pool.slices, student.network, classes=classes, batch_size=batch_size, augment=how.unlabelled_augment,
                confidence=how.consistency.confidence,
            )  # fmt: skip

        def new_terms() -> dict[str, Term]:
            """Create the loss terms on unlabelled slices; `rounds` needs new ones in every round."""
            terms: dict[str, Term] = {}
            if in_rounds and how.pseudo_weight:
                terms["pseudo"] = PseudoTerm(
                    r, pool, classes=classes, batch_size=unlabelled, augment=how.unlabelled_augment,
                    criterion=criterion, weight=how.pseudo_weight,
                )  # fmt: skip
            if in_rounds and contrast.weight:
                terms["contrast"] = ContrastTerm(r, slices, pool.slices, classes=classes, options=contrast)
                r.say(str(terms["contrast"]))
            if how.method == "consistency":
                terms["consistency"] = ConsistencyTerm(
                    r, pseudo_labelled(unlabelled), criterion=criterion, steps=total, options=how.consistency
                )
            if how.method == "copy-paste":
                terms["copy-paste"] = CopyPasteTerm(
                    r, labelled("pasted", unlabelled // 2), pseudo_labelled(unlabelled // 2), criterion=criterion,
                    steps=total, options=how.consistency,
                )  # fmt: skip
            if how.method == "mean-teacher":
                terms["mean-teacher"] = MeanTeacherTerm(
                    r, pool.slices, student.network, batch_size=unlabelled, steps=total, options=how.teacher
                )
            return terms

        in_batch = BatchContrast(r, classes=classes, options=contrast) if contrast.weight and not in_rounds else None
        terms: dict[str, Term] = {}
        for step in r.steps(total, samples_per_step=settings.batch_size):
            if step == 0:
                scoring.begin(segmenter.network.to(r.device))
            if in_rounds and step % settings.steps == 0:
                author = f"the segmenter {Path(model).name}" if step == 0 else f"this run, {scoring.description(step)}"
                source = segmenter.network.to(r.device) if step == 0 else student.network
                score = scoring.begun.score if step == 0 else scoring.best_of_round.score
                r.record(**pool.refresh(source, scoring.best_of_round, step=step, made_by=author, score=score))
                scoring.best_of_round.reset()
                terms = {}
            terms = terms or new_terms()
            batch = batches.at(step)
            more = {name: term.images(step) for name, term in terms.items()}
            images = torch.cat([batch.images, *more.values()])
            segmented = len(images) - len(more.get("contrast", ()))
            consistency = terms.get("consistency")
            drop = consistency.drop(step) if isinstance(consistency, ConsistencyTerm) else None
            logits, embedding = student.model(images, segmented, shared=in_batch is not None, drop=drop)
            losses = {"segmentation": criterion(logits[: len(batch.images)], batch.shares)}
            for name, term in terms.items():
                output = embedding if name == "contrast" else logits[len(batch.images) :]
                losses[name] = term.loss(output, step)
            weights = {"segmentation": 1.0} | {name: term.weight for name, term in terms.items()}
            if in_batch is not None:
                known = torch.cat([batch.shares.argmax(1), *(term.known for term in terms.values())])
                losses["contrast"], weights["contrast"] = in_batch.loss(embedding, known, step), in_batch.weight
            value = torch.stack([weights[name] * each for name, each in losses.items()]).sum()
            student.update(r, value)
            r.log(loss=value, **losses)
            estimate.after(step)
            ends_round = (step + 1) % settings.steps == 0
            scoring.after(step, student.network, ends_round=ends_round)
            if ends_round and in_rounds:
                pool.finish(scoring.best_of_round)
                save(f"models/round-{pool.round:02d}", f"last step of round {pool.round}")
        if not in_rounds:
            save("models/last", f"last step ({total})")
        description = scoring.choose(student.network, keep=settings.keep, steps=total)
        problems = [] if in_rounds else pool.collapse(student.network)
        if problems:
            r.say(f"warning: on the unlabelled volumes, {'; '.join(problems)}")
            if how.pseudo.guard == "stop" and not pool.collapse(segmenter.network):
                student.network.load_state_dict(segmenter.network.state_dict())
                description = (
                    f"initial segmenter, because after training, on the unlabelled volumes, {'; '.join(problems)}"
                )
        r.say(f"weights kept: {description}")
        refinement = choose_refinement(r, validation, student.network) if settings.test_time else Refinement()
        target = save(
            "model", description, refinement,
            {"implausible": problems},
        )  # fmt: skip
    if score_withheld and r.is_main and in_rounds:
        _score_withheld(out, data, training_data, opening=opening, cache=cache)
    return target


def _score_withheld(
    out: Path, data: str, training_data: TrainingData, *, opening: DataOptions, cache: Path | None
) -> None:
    dataset = open_with(data, replace(opening, allow_unlabelled=True))
    names = [case.name for case in training_data.unlabelled if dataset.case(case.name).label is not None]
    cases = prepare_cases(dataset, names, training_data.preprocessing, labels=True, cache=cache)
    labels = {case.name: case.label for case in cases if case.label is not None}
    score_withheld_labels(out, training_data.labels.structures, labels)


def _check_data(
    training_data: TrainingData, segmenter: Segmenter, how: SelfTrainingOptions, *, model: str, split: Path, keep: str
) -> None:
    if segmenter.labels != training_data.labels:
        raise UserError(
            f"{model} segments {segmenter.labels}, but the data set has {training_data.labels}; expected the same "
            "structures and label values"
        )
    if how.consistency.feature_dropout and isinstance(segmenter.network.trunk, MonaiTrunk):
        raise UserError(
            f"consistency.feature_dropout needs the feature maps of the encoder, which {segmenter.options.name} does "
            "not provide; use it with plain-unet or unet, or leave it at 0"
        )
    if not training_data.unlabelled:
        raise UserError(f"{split}: the split has no unlabelled cases; self-training needs at least one")
    if keep == "best" and not training_data.validation:
        raise UserError(
            f"{split}: the split has no validation cases, so the best step cannot be determined; use --keep last"
        )
