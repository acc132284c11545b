"""Pre-train without labels (`ssl-medseg pretrain`), in one loop that is easy to copy and adapt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions
from ssl_medseg.datasets import DataOptions
from ssl_medseg.models import NetworkOptions, UNet, settle_statistics
from ssl_medseg.models.pretraining import GlobalNetwork, LocalNetwork, save_trunk
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.pretraining.stages import GlobalStage, LocalStage, PretrainingOptions, Stage
from ssl_medseg.training.data import PLACES, keep_identity, open_training_data
from ssl_medseg.training.optim import DurationEstimate, adam
from ssl_medseg.training.recipe import PAPER
from ssl_medseg.training.slices import stack_slices


def pretrain(
    data: str,
    out: Path,
    *,
    split: Path,
    pretraining: PretrainingOptions = PretrainingOptions(),  # noqa: B008 - frozen
    network: NetworkOptions = NetworkOptions("unet", PAPER.width),  # noqa: B008
    preprocessing: PreprocessingOptions = PreprocessingOptions(),  # noqa: B008
    opening: DataOptions = DataOptions(),  # noqa: B008
    cache: Path | None = None,
    run: RunOptions = RunOptions(),  # noqa: B008
) -> Path:
    """Pre-train the trunk of the U-Net on labelled and unlabelled volumes without labels, for `train --init`.

    This is the method of Chaitanya et al. (2020), which divides every volume into the same number of parts along the
    slice axis. The first stage trains the encoder to distinguish slices of different parts. With ``GD``, slices of the
    same part of different volumes are positive pairs; with ``GD-``, they are merely excluded from the negatives;
    ``GR`` is SimCLR, which ignores the parts. The second stage freezes the encoder and trains the first decoder blocks
    to give a region similar features under two intensity augmentations, and different ones from its neighbours
    (``LR``); ``LD`` also matches regions in slices of the same part of another volume. The defaults are those of the
    released code. The last weights are kept. An interrupted run resumes exactly.

    Args:
        data: Data set: a folder in one of the layouts listed by `check`, or a CSV file.
        out: Folder of the run: configuration, metrics, checkpoints, model.
        split: Split file, as written by `ssl-medseg make-splits`; its labelled and unlabelled cases are used.
        pretraining: Losses, lengths and batches of both stages, and the learning rate.
        network: Network; must be the paper's U-Net, because the stages refer to its decoder blocks.
        preprocessing: Preprocessing settings; unset ones are derived from the data.
        opening: Options for opening the data set.
        cache: Folder for preprocessed volumes, which several runs can share.
        run: Execution of the run: seed, device, precision, checkpoints, logs.

    Returns:
        The folder of the pre-trained trunk.
    """
    network = replace(
        network, name="unet" if network.name == "auto" else network.name, width=network.width or PAPER.width
    )
    config = dict(locals())
    if network.name != "unet":
        raise UserError(f"network.name is {network.name}; pretrain supports only unet")
    training_data = open_training_data(
        data, split, opening=opening, preprocessing=preprocessing, unlabelled=True, cache=cache
    )
    slices = stack_slices([*training_data.labelled, *training_data.unlabelled])
    height, width = slices.images.shape[2:]
    with Run(out, config=config, command="ssl-medseg pretrain", options=run, free=PLACES) as r:
        keep_identity(r, training_data)  # data are identified by their content, not by their path
        for note in training_data.notes:
            r.say(note)
        torch.manual_seed(r.seed("weights"))
        trunk = UNet(len(training_data.preprocessing.channels), network.width)
        encoder = GlobalNetwork(trunk, (height, width))
        decoder = LocalNetwork(trunk, blocks=pretraining.decoder_blocks)
        for each in (encoder, decoder):
            settle_statistics(each, steps=min(filter(None, (pretraining.global_steps, pretraining.local_steps))))
            each.to(memory_format=torch.channels_last)
        # With several processes, each stage synchronises only the gradients of the parameters that it trains.
        models, optimizers = {}, {}
        for name, each in (("global", encoder), ("local", decoder)):
            each.requires_grad_(False)
            for parameter in each.trained:
                parameter.requires_grad_(True)
            models[name], optimizers[name] = r.setup(each, adam(each.trained, lr=pretraining.lr))
        for each in (encoder, decoder):
            for parameter in each.trained:
                parameter.requires_grad_(True)
        # The two networks share the trunk, so it is tracked once.
        r.track(trunk=trunk, global_head=encoder.head, local_head=decoder.head)
        r.track(global_optimizer=optimizers["global"], local_optimizer=optimizers["local"])
        stages: dict[str, Stage] = {
            "global": GlobalStage(r, slices, pretraining),
            "local": LocalStage(r, slices, pretraining),
        }
        left_out = stages["global"].batches.left_out
        if left_out:
            r.say(f"note: {left_out} volumes with fewer than {pretraining.partitions} slices are left out")
        total = pretraining.steps
        estimate = DurationEstimate(r, total, each="slices of several volumes")
        for step in r.steps(total):
            name = "global" if step < pretraining.global_steps else "local"
            loss = stages[name].loss(models[name], step)
            optimizers[name].zero_grad()
            r.fabric.backward(loss)
            optimizers[name].step()
            r.log(**{f"{name}_loss": loss})
            estimate.after(step)
        return save_trunk(
            r, trunk, options=network, preprocessing=training_data.preprocessing,
            details={"method": "pretrain", "losses": [pretraining.global_loss, pretraining.local_loss],
                     "blocks": pretraining.decoder_blocks, "steps": total, "cases": list(slices.names)},
        )  # fmt: skip
