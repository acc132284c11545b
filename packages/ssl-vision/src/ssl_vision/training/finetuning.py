"""`ssl-vision finetune`: train a classifier with few labels. One training loop, meant to be copied and changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training import Run, RunOptions
from ssl_vision.data import open_images
from ssl_vision.data.class_names import find_class_names
from ssl_vision.data.dataset import TrainingReadOptions
from ssl_vision.evaluation.features import extract
from ssl_vision.evaluation.probes import choose_logistic
from ssl_vision.labels.subsets import require_two_classes, training_set, unseen_classes, validation_set
from ssl_vision.models import EncoderOptions
from ssl_vision.models.lora import add_low_rank, merge_low_rank
from ssl_vision.models.model_folder import NONE, LoadedModel, open_start, save_classifier
from ssl_vision.training.loading import FREE, Crops
from ssl_vision.training.options import FinetuningOptions, OptimizerOptions, ValidationOptions
from ssl_vision.training.setup import Validation, plan_budget, set_up

SIMCLR = OptimizerOptions(name="sgd", lr=0.05, scaling="linear", warmup_epochs=0.0, momentum=0.9, weight_decay=0.0)
"""Optimiser of SimCLR's fine-tuning, Appendix B.5."""

RECIPES = """\
  --config supervised                                   90 epochs of ResNet-18; at 32 px, 1,000 labelled images take
                                                        half an hour on one CPU core
  --config supervised --encoder.width-multiplier 0.25   the same with a quarter of the channels: three minutes
Without --config, SimCLR's settings for fine-tuning are used. To start from a pre-trained model, give its folder
instead of 'none'."""
"""Recipes for training from scratch and their cost, shown if no length is given."""

_EPOCHS = 60  # of fine-tuning a pre-trained model, by default


def finetune(
    init: str,
    data: str,
    out: Path,
    *,
    labels: Path | None = None,
    part: str = "train",
    validation: ValidationOptions = ValidationOptions(),  # noqa: B008 - frozen
    from_layer: int = 0,
    classifier_init: Literal["zero", "linear"] = "zero",
    lora_rank: int = 0,
    training: FinetuningOptions = FinetuningOptions(),  # noqa: B008
    label_smoothing: float = 0.0,
    encoder: EncoderOptions | None = None,
    optimizer: OptimizerOptions = SIMCLR,
    read: TrainingReadOptions = TrainingReadOptions(),  # noqa: B008
    run: RunOptions = RunOptions(),  # noqa: B008
) -> Path:
    """Train a classifier on labelled images, from a pre-trained model or from scratch.

    A linear layer is added to the encoder, or to the first layers of its projection head, and the whole network is
    trained with softmax cross-entropy on random crops and flips; batch norm is in training mode, over all processes.
    The defaults are SimCLR's (Appendix B.5): Nesterov momentum 0.9, learning rate ``0.05 * batch / 256``, cosine, no
    warm-up, no weight decay. ``--config finetune-simclrv2`` gives SimCLRv2's settings, from the first layer of the
    head; ``--config supervised`` trains from scratch with the same labels. The model is that of the last step.

    Labels of images that are not listed, and test images, are never read. A run resumes exactly, as with `pretrain`.

    Args:
        init: Initial weights: a run folder or model folder, or ``none`` for random weights with `encoder`.
        data: Image folder, CSV manifest or named data set with labels.
        out: Folder of the run: configuration, metrics, checkpoints, model.
        labels: Label file, as written by `make-splits`, or a list of file names; by default all images of the part
            that are not held out for validation.
        part: Part of the data to train on.
        validation: Validation images, a label file of images of `part` that `labels` does not list or another split.
        from_layer: Number of layers of the projection head to keep below the linear layer; 0 for none. SimCLRv2 keeps
            1.
        classifier_init: Initial weights of the linear layer: ``zero``, as in the papers' code, or ``linear``, a
            logistic regression on the features of the initial network, with a penalty chosen by cross-validation. This
            is linear probing followed by fine-tuning (Kumar et al. 2022), which with few labels starts where
            `few-labels` and `linear` end.
        lora_rank: Rank of the updates that are trained instead of the weights of the encoder's linear layers (LoRA, Hu
            et al. 2021); all other weights of the encoder stay fixed, and the updates are added to the weights at the
            end. 0: train all weights. Low-rank updates suit transformers with few labels; 8 is usual.
        training: Length of training, batches, and size of the crops.
        label_smoothing: Share of the label spread evenly over all classes.
        encoder: Network, if `init` is ``none``.
        optimizer: Optimiser and schedule. LARS treats the linear layer as plain momentum SGD, as in the released code.
        read: Source of the images, and options for reading image files.
        run: Seed, device, precision, checkpoints, logs.

    Returns:
        Path of the trained model.
    """
    config = dict(locals())
    if not 0 <= label_smoothing < 1 or lora_rank < 0:
        raise UserError(
            f"finetune needs 0 <= label_smoothing < 1 and lora_rank >= 0; got {label_smoothing} and {lora_rank}"
        )
    if training.epochs == 0 and init == NONE and (encoder is None or encoder.weights is None):
        raise UserError(
            f"finetune from scratch needs a length: expected --epochs, or --config with a recipe\n{RECIPES}"
        )
    epochs = training.epochs or _EPOCHS
    start = open_start(init, encoder=encoder, from_layer=from_layer, image_size=training.image_size)
    read = read.for_model(start.bits)
    images = open_images(data, split=part, channels=start.architecture.encoder.image_channels, read=read)
    validation_images, held_out = validation_set(validation.validate_on, data, images)
    labelled = training_set(images, labels, held_out=held_out)
    require_two_classes(labelled, labels=labels)
    targets = labelled.labels()
    start = start.measured(labelled)
    size = start.architecture.image_size
    resolved = {
        "encoder": start.described(encoder),
        "training": replace(training, image_size=size, epochs=epochs),
        "read": read,
    }
    with Run(out, config=config, command="ssl-vision finetune", options=run, free=FREE, resolved=resolved) as r:
        budget = plan_budget(len(labelled), epochs=epochs, batch_size=training.batch_size, world_size=r.world_size)
        r.say(str(budget))
        if missing := unseen_classes(labelled):
            r.say(f"note: there is no labelled image of {len(missing)} classes ({some_of(missing)})")
        batches = budget.batches(r)
        torch.manual_seed(r.seed("weights"))
        network = start.build(len(images.classes)).to(memory_format=torch.channels_last)
        if classifier_init == "linear":
            frozen = LoadedModel(nn.Sequential(network.encoder, network.neck), size, torch.device("cpu"))
            probe = choose_logistic(extract(frozen, labelled), targets, len(images.classes), seed=r.seed("folds"))
            network.fc.load_state_dict(probe.fit.classifier.state_dict())
            network.train()
        if lora_rank:
            add_low_rank(network.encoder, lora_rank)
        crops = Crops(labelled, batches, size=size, seed=r.seed("crops"), load=read.load, workers=run.workers)
        model, optim, schedule = set_up(
            r, network, optimizer, unlabelled=None, labelled=labelled,
            batch_size=budget.batch_size, epochs=epochs, total_steps=budget.total_steps, unadapted=("fc",),
        )  # fmt: skip
        validator = Validation(r, validation_images, budget, every=validation.validate_every, size=size)

        for step in r.steps(budget.total_steps, samples_per_step=budget.batch_size):
            pictures = crops.batch(step, r.device)
            target = targets[batches.at(step)].to(r.device, non_blocking=True)
            logits = model(pictures)
            loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing)
            optim.zero_grad()
            r.fabric.backward(loss)
            lr = optim.param_groups[0]["lr"]
            optim.step()
            schedule.step()
            r.log(loss=loss, lr=lr, epoch=budget.epoch(step + 1))
            if r.is_logged_step:
                r.log(accuracy=(logits.argmax(dim=1) == target).float().mean())
            validator.after(step, model)
        if lora_rank:
            merge_low_rank(network.encoder)
        return save_classifier(
            r,
            network,
            architecture=start.architecture,
            classes=images.classes,
            epoch=epochs,
            labelled=labelled,
            validation=validation_images,
            validated_before=start.validated_on,
            class_names=find_class_names(data, images.classes),
            bits=read.bits,
        )
