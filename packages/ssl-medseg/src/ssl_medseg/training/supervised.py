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
from ssl_medseg.models.network import AUTO, Refinement
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
    network: NetworkOptions = AUTO,
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
    begun = None if init is None else load_trunk(init)
    if begun is not None:
        begun.check_options(network, preprocessing)
    chosen = choose(
        training, optimizer, device=run.device, network=network if begun is None else begun.options, augment=augment,
        precision=run.precision,
    )  # fmt: skip
    run = replace(run, precision=chosen.precision)
    seen = open_training_data(
        data, split, opening=opening, preprocessing=preprocessing if begun is None else begun.preprocessing,
        unlabelled=False, cache=cache, largest=chosen.largest,
    )  # fmt: skip
    chosen = chosen.for_data(seen.labels, seen.labelled, oriented=seen.preprocessing.directions is not None)
    if chosen.keep == "best" and not seen.validation:
        raise UserError(
            f"{split}: the split has no validation cases, so the best step cannot be determined; use --keep last"
        )
    classes, slices = len(seen.labels), seen.slices()
    with Run(out, config=config, command="ssl-medseg train", options=run, free=PLACES, resolved=chosen.values) as r:
        before = labels_before(init) if init is not None and begun is not None and begun.is_segmenter else []
        keep_identity(r, seen, before=before)  # data are identified by their content, not by their path
        for note in [str(chosen), *seen.notes]:
            r.say(note)
        batches = SegmentationBatches(
            r, slices, classes=classes, pool=slices_with(slices, classes=classes, least=chosen.least_classes),
            batch_size=chosen.batch_size, augment=chosen.augment, rare_share=chosen.rare_share,
        )  # fmt: skip
        torch.manual_seed(r.seed("weights"))
        segmenter = build_network(chosen.network, classes, channels=len(seen.preprocessing.channels))
        if begun is not None:
            segmenter.trunk.load_state_dict(begun.weights)
        settle_statistics(segmenter, steps=chosen.steps)
        criterion = segmentation_loss(chosen.loss, classes=classes)
        model, adamw = r.setup(segmenter, adam(segmenter.parameters(), lr=chosen.lr, weight_decay=chosen.weight_decay))
        rates, best = scheduler(adamw, chosen.schedule, cycle=chosen.steps), BestWeights()
        r.track(model=model, optimizer=adamw, rates=rates, best=best)
        average = None
        if chosen.ema:
            average = moving_average(segmenter, chosen.ema)
            r.track(average=average)
        kept = segmenter if average is None else average.module
        validation = seen.validate_with(r, steps=chosen.steps, every=chosen.validate_every, recipe=chosen.recipe)
        estimate = _duration_estimate(r, chosen, slices, validation, kept)

        for step in r.steps(chosen.steps, samples_per_step=chosen.batch_size):
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
            done = step + 1
            if validation is not None and (done % chosen.validate_every == 0 or done == chosen.steps):
                scores = validation.scores(kept, step=done)
                r.record(**scores.record())
                if scores.score is not None:
                    best.offer(scores.score, step=done, network=kept)

        def save(folder: str, weights: str, refinement: Refinement) -> Path:
            return save_segmenter(
                r, kept, options=chosen.network, labels=seen.labels, preprocessing=seen.preprocessing,
                refinement=refinement, folder=folder,
                details={
                    "method": "train", "labelled": list(slices.names), "weights": weights, "steps": chosen.steps,
                    "recipe": chosen.recipe, "effort": chosen.effort,
                },
            )  # fmt: skip

        weights = f"last step ({chosen.steps})"
        save("models/last", weights, Refinement())
        if best.score is not None and chosen.keep != "last":
            best.give(kept)
            weights = f"best step ({best.step}), validation Dice {best.score:.3f}"
        weights += f", averaged with decay {chosen.ema:g}" if chosen.ema else ""
        r.say(f"weights kept: {weights}")
        refinement = choose_refinement(r, validation, kept) if chosen.test_time else Refinement()
        return save("model", weights, refinement)


def _duration_estimate(
    run: Run, chosen: Settings, slices: SliceSet, validation: Validation | None, kept: nn.Module
) -> DurationEstimate:
    """Estimate the duration; validates once, so that an error in validation shows before the first step."""
    apart = 0.0
    if validation is not None:
        apart = seconds_of(lambda: validation.scores(kept)) * (chosen.steps // chosen.validate_every)
    height, width = slices.images.shape[2:]
    return DurationEstimate(
        run, chosen.steps, each=f"{chosen.batch_size} slices of {height} x {width} pixels", apart=apart
    )
