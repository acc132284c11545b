"""The supervised baseline: `ssl-medseg train`. One readable loop; copy it and change it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions
from ssl_medseg.datasets import DataOptions
from ssl_medseg.losses.segmentation import SegmentationLoss, segmentation_loss
from ssl_medseg.models import NetworkOptions, build_network, settle_statistics
from ssl_medseg.models.checkpoint import save_segmenter
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.pretraining.model import load_trunk
from ssl_medseg.training.augment import AugmentOptions
from ssl_medseg.training.data import open_training_data
from ssl_medseg.training.optim import BestWeights, Pace, Schedule, adam, moving_average, scheduler, seconds_of
from ssl_medseg.training.slices import SegmentationBatches, slices_with


def train(  # noqa: PLR0915 - the whole of a run, to be read from top to bottom
    data: str,
    split: Path,
    out: Path,
    *,
    steps: int = 5000,
    batch_size: int = 20,
    lr: float = 1e-2,
    schedule: Schedule = "cosine",
    loss: SegmentationLoss = "dice",
    least_classes: int = 1,
    validate_every: int = 50,
    keep: Literal["auto", "best", "last"] = "auto",
    ema: float = 0.0,
    start: str | None = None,
    network: NetworkOptions = NetworkOptions(),  # noqa: B008 - frozen
    augment: AugmentOptions = AugmentOptions(),  # noqa: B008
    preprocessing: PreprocessingOptions = PreprocessingOptions(),  # noqa: B008
    opening: DataOptions = DataOptions(),  # noqa: B008
    cache: Path | None = None,
    run: RunOptions = RunOptions(),  # noqa: B008
) -> Path:
    """Train a segmenter on the labelled volumes of a split alone: the baseline, and the start of self-training.

    The defaults are those of the released code, 20 slices per step with affine and elastic augmentation, Dice with the
    background, Adam, 5,000 steps, the best of a validation every 50 steps, but for two of our choice that short runs
    gain much from: a learning rate of 1e-2 that a cosine brings down to 0, where it has 1e-3 throughout, and brightness
    and contrast of labelled slices. Every slice has draws of its own.
    Files of test cases and labels of unlabelled cases are never opened; deleting them changes no byte of the result.

    Args:
        data: the data set: a folder in one of the layouts that `check` names, or a CSV file.
        split: the split's file, as `make-splits` writes it.
        out: the run's folder: config, metrics, checkpoints, model.
        steps: of training.
        batch_size: slices per step, over all processes.
        lr: learning rate of Adam, the largest of the schedule.
        schedule: ``cosine``: up over the first steps, then down to 0; or ``constant``, at 1e-3 the released code's.
        loss: ``dice``, ``dice-foreground`` (without the background's), or weighted ``cross-entropy``.
        least_classes: slices that show fewer classes than this, the background included, are not drawn.
        validate_every: steps between two scores on the validation cases, 3-D Dice on their own grids.
        keep: the weights with the ``best`` mean foreground Dice on validation, or the ``last``; auto: the best if the
            split has validation cases.
        ema: decay of an exponential moving average of the weights, which then is what is scored and kept; 0: none.
        start: folder of `pretrain`, or of another segmenter: its trunk is what training begins with, its network and
            preprocessing are taken over. None: random weights.
        network: the network.
        augment: of the labelled slices.
        preprocessing: what of it is given; the rest is derived from the data, and the reasons are said.
        opening: how to open the data set.
        cache: a folder that keeps prepared volumes, which runs may share.
        run: seed, device, precision, checkpoints, logs.

    Returns:
        The folder of the trained segmenter.
    """
    config = dict(locals())
    if steps < 1 or validate_every < 1 or not 0 < lr < float("inf") or not 0 <= ema < 1:
        raise UserError(
            f"train needs steps and validate_every of at least 1, lr above 0 and 0 <= ema < 1; got {steps}, "
            f"{validate_every}, {lr} and {ema}"
        )
    begun = None if start is None else load_trunk(start)
    network = network if begun is None else begun.options
    wanted = preprocessing if begun is None else begun.preprocessing
    seen = open_training_data(data, split, opening=opening, preprocessing=wanted, unlabelled=False, cache=cache)
    if keep == "best" and not seen.validation:
        raise UserError(f"{split}: names no validation case, so there is no best step; use --keep last")
    classes, slices = len(seen.labels), seen.slices()
    with Run(out, config=config, command="ssl-medseg train", options=run, free=("cache",)) as r:
        for note in seen.notes:
            r.say(note)
        batches = SegmentationBatches(
            r, slices, classes=classes, pool=slices_with(slices, classes=classes, least=least_classes),
            batch_size=batch_size, augment=augment,
        )  # fmt: skip
        torch.manual_seed(r.seed("weights"))
        segmenter = build_network(network, classes).to(memory_format=torch.channels_last)
        if begun is not None:
            segmenter.trunk.load_state_dict(begun.weights)
        settle_statistics(segmenter, steps=steps)
        criterion = segmentation_loss(loss, classes=classes)
        model, optimizer = r.setup(segmenter, adam(segmenter.parameters(), lr=lr))
        rates, best = scheduler(optimizer, schedule, cycle=steps), BestWeights()
        r.track(model=model, optimizer=optimizer, rates=rates, best=best)
        average = None
        if ema:
            average = moving_average(segmenter, ema)
            r.track(average=average)
        kept = segmenter if average is None else average.module
        validation = seen.validate_with(r)
        # What does not work in a validation shall fail before the first step, and its time is known then.
        apart = 0.0 if validation is None else seconds_of(lambda: validation.scores(kept)) * (steps // validate_every)
        height, width = slices.images.shape[2:]
        pace = Pace(r, steps, each=f"{batch_size} slices of {height} x {width} pixels", apart=apart)

        for step in r.steps(steps, samples_per_step=batch_size):
            batch = batches.at(step)
            value = criterion(model(batch.images), batch.shares)
            optimizer.zero_grad()
            r.fabric.backward(value)
            optimizer.step()
            rates.step()
            if average is not None:
                average.update_parameters(segmenter)
            r.log(loss=value)
            pace.after(step)
            if validation is not None and ((step + 1) % validate_every == 0 or step + 1 == steps):
                scores = validation.scores(kept)
                r.record(**scores.record())
                best.offer(scores.mean, step=step + 1, network=kept)

        chosen = f"the last, after step {steps}"
        if validation is not None and keep != "last":
            best.give(kept)
            chosen = f"the best of validation, Dice {best.score:.3f} after step {best.step}"
        chosen += f", averaged with decay {ema:g}" if ema else ""
        r.say(f"weights kept: {chosen}")
        return save_segmenter(
            r, kept, options=network, labels=seen.labels, preprocessing=seen.preprocessing,
            details={"method": "train", "labelled": list(slices.names), "weights": chosen, "steps": steps},
        )  # fmt: skip
