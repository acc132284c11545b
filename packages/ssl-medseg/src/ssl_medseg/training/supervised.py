"""Train the supervised baseline (`ssl-medseg train`), in one loop that is easy to copy and adapt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions
from ssl_medseg.datasets import DataOptions
from ssl_medseg.losses.segmentation import segmentation_loss
from ssl_medseg.models import NetworkOptions, build_network, settle_statistics
from ssl_medseg.models.model_folder import save_segmenter
from ssl_medseg.models.network import Refinement
from ssl_medseg.models.pretraining import load_trunk
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.training.data import PLACES, keep_identity, labels_before, open_training_data
from ssl_medseg.training.optim import BestWeights, DurationEstimate, adam, moving_average, scheduler, seconds_of
from ssl_medseg.training.recipe import OptimizerOptions, Settings, TrainingOptions, choose
from ssl_medseg.training.slices import AugmentOptions, SegmentationBatches, SliceSet, slices_with
from ssl_medseg.training.validation import Validation, choose_refinement


def train(  # noqa: PLR0915 - the whole of a run, to be read from top to bottom
    data: str,
    out: Path,
    *,
    split: Path,
    init: str | None = None,
    training: TrainingOptions = TrainingOptions(),  # noqa: B008 - frozen
    optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
    network: NetworkOptions = NetworkOptions(),  # noqa: B008
    augment: AugmentOptions = AugmentOptions(),  # noqa: B008
    preprocessing: PreprocessingOptions = PreprocessingOptions(),  # noqa: B008
    opening: DataOptions = DataOptions(),  # noqa: B008
    cache: Path | None = None,
    run: RunOptions = RunOptions(precision="auto"),  # noqa: B008
) -> Path:
    """Train a segmenter on the labelled volumes of a split only: the baseline and the start of self-training.

    The recipe sets network, loss, optimiser and augmentation; the effort sets image size, network width, number of
    steps and batch size. Options given explicitly take precedence. ``strong`` is designed for few labels: a U-Net with
    instance norm, Dice over the batch plus cross-entropy, AdamW with a cosine schedule, strong augmentation, half of
    each batch with the rarest structure, averaged weights. ``paper`` follows the released code: 20 slices per step,
    Dice including the background, Adam, 5,000 steps. It differs in two points: the learning rate starts at 1e-2 and
    decays to 0 on a cosine schedule (the released code uses 1e-3 throughout), and labelled slices are also augmented in
    brightness and contrast. Every slice is augmented independently.

    Training never opens the files of test cases or the labels of unlabelled cases; deleting them does not change a
    single byte of the result.

    Args:
        data: Data set: a folder in one of the layouts listed by `check`, or a CSV file.
        out: Folder of the run: configuration, metrics, checkpoints, model.
        split: Split file, as written by `ssl-medseg make-splits`.
        init: Run folder or model folder of `pretrain` or of another segmenter, whose trunk weights, network and
            preprocessing are used; other ones are refused. By default random weights.
        training: Length of training, batches, loss, and the weights to keep.
        optimizer: Optimiser, learning rate, and averaging of the weights.
        network: Network; `auto` and 0 leave the choice to recipe and effort.
        augment: Augmentation of the labelled slices.
        preprocessing: Preprocessing settings; unset ones are derived from the data.
        opening: Options for opening the data set.
        cache: Folder for preprocessed volumes, which several runs can share.
        run: Execution of the run: seed, device, precision, checkpoints, logs. Precision ``auto`` means float32 in the
            paper's recipe.

    Returns:
        The folder of the trained segmenter.
    """
    config = dict(locals())
    trunk = None if init is None else load_trunk(init)
    if trunk is not None:
        trunk.check_options(network, preprocessing)
    settings = choose(
        training, optimizer, device=run.device, network=network if trunk is None else trunk.options, augment=augment,
        precision=run.precision,
    )  # fmt: skip
    run = replace(run, precision=settings.precision)
    training_data = open_training_data(
        data, split, opening=opening, preprocessing=preprocessing if trunk is None else trunk.preprocessing,
        unlabelled=False, cache=cache, largest=settings.largest,
    )  # fmt: skip
    settings = settings.for_data(
        training_data.labels, training_data.labelled, oriented=training_data.preprocessing.directions is not None
    )
    if settings.keep == "best" and not training_data.validation:
        raise UserError(
            f"{split}: the split has no validation cases, so the best step cannot be determined; use --keep last"
        )
    classes, slices = len(training_data.labels), training_data.slices()
    with Run(out, config=config, command="ssl-medseg train", options=run, free=PLACES, resolved=settings.values) as r:
        before = labels_before(init) if init is not None and trunk is not None and trunk.is_segmenter else []
        keep_identity(r, training_data, before=before)  # data are identified by their content, not by their path
        for note in [str(settings), *training_data.notes]:
            r.say(note)
        batches = SegmentationBatches(
            r, slices, classes=classes, pool=slices_with(slices, classes=classes, least=settings.least_classes),
            batch_size=settings.batch_size, augment=settings.augment, rare_share=settings.rare_share,
        )  # fmt: skip
        torch.manual_seed(r.seed("weights"))
        segmenter = build_network(settings.network, classes, channels=len(training_data.preprocessing.channels))
        if trunk is not None:
            segmenter.trunk.load_state_dict(trunk.weights)
        settle_statistics(segmenter, steps=settings.steps)
        criterion = segmentation_loss(settings.loss, classes=classes)
        model, adamw = r.setup(
            segmenter, adam(segmenter.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        )
        rates, best = scheduler(adamw, settings.schedule, cycle=settings.steps), BestWeights()
        r.track(model=model, optimizer=adamw, rates=rates, best=best)
        average = None
        if settings.ema:
            average = moving_average(segmenter, settings.ema)
            r.track(average=average)
        final_network = segmenter if average is None else average.module
        validation = training_data.validate_with(
            r, steps=settings.steps, every=settings.validate_every, recipe=settings.recipe
        )
        estimate = _duration_estimate(r, settings, slices, validation, final_network)

        for step in r.steps(settings.steps, samples_per_step=settings.batch_size):
            batch = batches.at(step)
            value = criterion(model(batch.images), batch.shares)
            adamw.zero_grad()
            r.fabric.backward(value)
            adamw.step()
            rates.step()
            if average is not None:
                average.update_parameters(segmenter)
            r.log(loss=value)
            estimate.after(step)
            n_steps = step + 1
            if validation is not None and (n_steps % settings.validate_every == 0 or n_steps == settings.steps):
                scores = validation.scores(final_network, step=n_steps)
                r.record(**scores.record())
                if scores.score is not None:
                    best.offer(scores.score, step=n_steps, network=final_network)

        def save(folder: str, weights: str, refinement: Refinement) -> Path:
            return save_segmenter(
                r, final_network, options=settings.network, labels=training_data.labels,
                preprocessing=training_data.preprocessing, refinement=refinement, folder=folder,
                details={
                    "method": "train", "labelled": list(slices.names), "weights": weights, "steps": settings.steps,
                    "recipe": settings.recipe, "effort": settings.effort,
                },
            )  # fmt: skip

        weights = f"last step ({settings.steps})"
        save("models/last", weights, Refinement())
        if best.score is not None and settings.keep != "last":
            best.give(final_network)
            weights = f"best step ({best.step}), validation Dice {best.score:.3f}"
        weights += f", averaged with decay {settings.ema:g}" if settings.ema else ""
        r.say(f"weights kept: {weights}")
        refinement = choose_refinement(r, validation, final_network) if settings.test_time else Refinement()
        return save("model", weights, refinement)


def _duration_estimate(
    run: Run, settings: Settings, slices: SliceSet, validation: Validation | None, network: nn.Module
) -> DurationEstimate:
    """Estimate the duration; validates once, so that an error in validation shows before the first step."""
    apart = 0.0
    if validation is not None:
        apart = seconds_of(lambda: validation.scores(network)) * (settings.steps // settings.validate_every)
    height, width = slices.images.shape[2:]
    return DurationEstimate(
        run, settings.steps, each=f"{settings.batch_size} slices of {height} x {width} pixels", apart=apart
    )
