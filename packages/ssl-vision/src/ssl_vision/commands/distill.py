"""`ssl-vision distill`: distil a classifier into a student. One training loop, meant to be copied and changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.errors import UserError
from contrastive_core.losses import distillation
from contrastive_core.text import several
from contrastive_core.training import Run, RunOptions
from ssl_vision.data import ImageSet, open_images, skip_bad
from ssl_vision.data.dataset import Load, UnlabelledReadOptions
from ssl_vision.labels.subsets import (
    check_classes,
    merge_fingerprints,
    require_two_classes,
    training_set,
    validation_set,
    without,
)
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import (
    NONE,
    LoadedClassifier,
    Start,
    load_architecture,
    load_classifier,
    open_start,
    save_classifier,
)
from ssl_vision.training.loading import FREE, Crops
from ssl_vision.training.options import DistillationOptions, OptimizerOptions, ValidationOptions
from ssl_vision.training.setup import Budget, Validation, plan_budget, set_up

TEACHER = "teacher"
"""Value of `init` for a student with the teacher's architecture: self-distillation."""

RECIPES = """\
  --config distill-simclrv2        400 epochs of a smaller student at batch 4096, for GPUs, as in the paper
  --config self-distill-simclrv2   the same for a student like the teacher
  --epochs 30                      ResNet-18 as student at 32 px: 1,000 images take ten minutes on one CPU core, and one
                                   minute with --encoder.width-multiplier 0.25, plus the teacher's predictions"""
"""Recipes and their cost, shown if no length is given."""


def distill(
    teacher: str,
    data: str,
    out: Path,
    *,
    part: str = "train",
    init: str = NONE,
    encoder: EncoderOptions | None = None,
    from_layer: int = 0,
    temperature: float = 1.0,
    scale_by_temperature: bool = False,
    labels: Path | None = None,
    alpha: float = 1.0,
    labelled_batch_size: int = 256,
    validation: ValidationOptions = ValidationOptions(),  # noqa: B008 - frozen
    training: DistillationOptions = DistillationOptions(),  # noqa: B008
    optimizer: OptimizerOptions = OptimizerOptions(lr=0.1, scaling="sqrt", weight_decay=1e-4),  # noqa: B008
    read: UnlabelledReadOptions = UnlabelledReadOptions(),  # noqa: B008
    run: RunOptions = RunOptions(),  # noqa: B008
) -> Path:
    """Train a student to predict the class probabilities of a fine-tuned teacher, without labels.

    The loss is the cross-entropy between the probabilities of teacher and student, both at the same temperature and for
    the same crop of an image, each at its own size. The teacher is frozen, with batch norm in inference mode. No label
    is read unless `alpha` is below 1: then the loss is (1 - alpha) times the cross-entropy with the labels of labelled
    images, which pass through the student in the same batch, plus alpha times the distillation loss (SimCLRv2,
    equations 2 and 3).

    ``--config distill-simclrv2`` and ``self-distill-simclrv2`` are the paper's. The model is that of the last step. A
    run resumes exactly, as with `pretrain`.

    Args:
        teacher: Run folder or model folder of a classifier (`finetune`).
        data: Image folder, with or without classes, CSV manifest or named data set.
        out: Folder of the run: configuration, metrics, checkpoints, model.
        part: Part of the data to train on.
        init: Initial weights of the student: ``none`` for random ones with `encoder`; ``teacher`` for random ones in
            the teacher's encoder without its head; or a pre-trained run folder or model folder.
        encoder: Network of the student, if `init` is ``none``.
        from_layer: Number of layers of a pre-trained student's projection head to keep.
        temperature: Temperature of both distributions. SimCLRv2: 0.1 for self-distillation, 1 for a smaller student.
        scale_by_temperature: Whether to multiply the loss by the squared temperature, as in the notebook released with
            SimCLRv2, but not in its paper. Without it, with LARS at a temperature of 0.1, the linear layer, which is
            not adapted, diverges.
        labels: Label file, with alpha below 1; by default all images of the part.
        alpha: Share of the distillation in the loss; 1: no labels.
        labelled_batch_size: Number of labelled images per step, over all processes, with alpha below 1.
        validation: Validation images, which are held out of training, as for `finetune`.
        training: Length of training, batches, and size of the crops.
        optimizer: Optimiser and schedule.
        read: Source of the images, limit for unreadable ones, and options for reading image files.
        run: Seed, device, precision, checkpoints, logs.

    Returns:
        Path of the trained student.
    """
    config = dict(locals())
    _check(training, alpha=alpha, temperature=temperature, labels=labels)
    epochs = training.epochs
    teacher_model = load_classifier(teacher, device="cpu")
    read = read.for_model(teacher_model.bits)
    images = open_images(data, split=part, channels=teacher_model.channels, read=read)
    if init == TEACHER:
        encoder = _encoder_of(teacher, encoder)
    start = _student(
        init,
        encoder=encoder,
        from_layer=from_layer,
        image_size=training.image_size,
        teacher=teacher_model,
        images=images,
    )
    size, teacher_size = start.architecture.image_size, teacher_model.image_size
    resolved = {"encoder": start.described(encoder), "training": replace(training, image_size=size), "read": read}
    validation_images, held_out = validation_set(validation.validate_on, data, images)
    labelled = None if alpha == 1 else training_set(images, labels, held_out=held_out)
    _check_labels(validation_images, labelled, labels=labels, teacher=teacher, classes=teacher_model.classes)
    unlabelled = without(images, held_out)
    with Run(out, config=config, command="ssl-vision distill", options=run, free=FREE, resolved=resolved) as r:
        budget = plan_budget(len(unlabelled), epochs=epochs, batch_size=training.batch_size, world_size=r.world_size)
        r.say(str(budget))
        torch.manual_seed(r.seed("weights"))
        network = start.build(len(teacher_model.classes)).to(memory_format=torch.channels_last)
        model, optim, schedule = set_up(
            r, network, optimizer, unlabelled=unlabelled, labelled=labelled,
            batch_size=budget.batch_size, epochs=epochs, total_steps=budget.total_steps, unadapted=("fc",),
        )  # fmt: skip
        readable = skip_bad(unlabelled, max_bad=read.max_bad, log=out / "bad_files.jsonl")
        crops = Crops(
            readable, budget.batches(r),
            size=[size] if teacher_size == size else [size, teacher_size], seed=r.seed("crops"), load=read.load,
            workers=run.workers,
        )  # fmt: skip
        few = (
            None if labelled is None else _Labelled(r, labelled, budget, labelled_batch_size, size=size, load=read.load)
        )
        validator = Validation(r, validation_images, budget, every=validation.validate_every, size=size)
        frozen = teacher_model.model.to(r.device).requires_grad_(False)

        for step in r.steps(budget.total_steps, samples_per_step=budget.batch_size):
            pictures, *of_teacher = crops.batches(step, r.device)
            with torch.no_grad(), r.fabric.autocast():
                teacher_logits = frozen(of_teacher[0] if of_teacher else pictures)
            inputs = pictures
            if few is not None:
                more, target = few.batch(step, r.device)
                inputs = torch.cat([pictures, more])  # one pass, so that batch norm sees all images
            logits = model(inputs)
            own, on_labelled = logits[: len(pictures)], logits[len(pictures) :]
            loss = distillation(own, teacher_logits, temperature=temperature, scale_by_temperature=scale_by_temperature)
            if few is not None:
                cross_entropy = F.cross_entropy(on_labelled, target)
                r.log(distillation=loss, cross_entropy=cross_entropy)
                loss = alpha * loss + (1 - alpha) * cross_entropy
            optim.zero_grad()
            r.fabric.backward(loss)
            lr = optim.param_groups[0]["lr"]
            optim.step()
            schedule.step()
            r.log(loss=loss, lr=lr, epoch=budget.epoch(step + 1))
            if r.is_logged_step:
                r.log(agreement=(own.argmax(dim=1) == teacher_logits.argmax(dim=1)).float().mean())
            validator.after(step, model)
        return save_classifier(
            r,
            network,
            architecture=start.architecture,
            classes=teacher_model.classes,
            epoch=epochs,
            labelled=labelled,
            validation=validation_images,
            validated_before=merge_fingerprints(start.validated_on, teacher_model.validated_on),
            class_names=teacher_model.class_names,
            bits=read.bits,
        )


class _Labelled:
    """Labelled images of every step, with their labels, for as many steps as the unlabelled ones take."""

    def __init__(
        self,
        run: Run,
        images: ImageSet,
        budget: Budget,
        batch_size: int,
        *,
        size: int,
        load: Load,
    ) -> None:
        own = plan_budget(len(images), epochs=1, batch_size=batch_size, world_size=run.world_size)
        own = Budget(own.images, own.batch_size, budget.total_steps, own.reduced)
        run.say(f"labelled: {own}")
        self._batches, self._labels = own.batches(run, "labelled order"), images.labels()
        self._crops = Crops(
            images,
            self._batches,
            size=size,
            seed=run.seed("labelled crops"),
            load=load,
            workers=run.options.workers,
        )

    def batch(self, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return images and labels of this step."""
        return self._crops.batch(step, device), self._labels[self._batches.at(step)].to(device, non_blocking=True)


def _student(
    init: str, *, encoder: EncoderOptions | None, from_layer: int, image_size: int | None, teacher: LoadedClassifier,
    images: ImageSet,
) -> Start:  # fmt: skip
    """The student before training; with random weights it is built for images of the teacher's size."""
    random = init in (NONE, TEACHER) and (encoder is None or encoder.weights is None)
    size = image_size or (teacher.image_size if random else None)
    if init == NONE and encoder is None:
        encoder = EncoderOptions(image_channels=teacher.channels)
    start = open_start(NONE if init == TEACHER else init, encoder=encoder, from_layer=from_layer, image_size=size)
    if (channels := start.architecture.encoder.image_channels) != teacher.channels:
        raise UserError(
            f"the student takes images with {several(channels, 'channel')}, the teacher with {teacher.channels}; both "
            f"see the same images: expected --encoder.image-channels {teacher.channels}, or a student trained for them"
        )
    return start.measured(images)


def _encoder_of(teacher: str, options: EncoderOptions | None) -> EncoderOptions:
    own = load_architecture(teacher).encoder
    if options is not None and options != own:
        raise UserError(
            f"the student has the architecture of the teacher, {own}, but the encoder {options} was given; leave it "
            f"out, or set --init {NONE}"
        )
    return own


def _check_labels(
    validation_images: ImageSet | None,
    labelled: ImageSet | None,
    *,
    labels: Path | None,
    teacher: str,
    classes: list[str],
) -> None:
    """Check that validation and labelled images have the teacher's classes, and the latter more than one of them."""
    for some in (validation_images, labelled):
        if some is not None:
            check_classes(some, classes, of=f"of {teacher}")
    if labelled is not None:
        require_two_classes(labelled, labels=labels)


def _check(training: DistillationOptions, *, alpha: float, temperature: float, labels: Path | None) -> None:
    if training.epochs == 0:
        raise UserError(f"distill needs a length: expected --epochs, or --config with a recipe\n{RECIPES}")
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is the share of the distillation in the loss, from 0 to 1; got {alpha}")
    if alpha == 1 and labels is not None:
        raise UserError(
            f"labels are {labels}, but at alpha 1 none is used; lower --alpha to use them too, or leave them out"
        )
    if temperature <= 0:
        raise UserError(f"distill needs temperature > 0, got {temperature}")
