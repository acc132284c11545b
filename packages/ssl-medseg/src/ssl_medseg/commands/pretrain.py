"""Pre-training without labels, the parent method: `ssl-medseg pretrain`. One readable loop; copy it and change it."""

from __future__ import annotations

from pathlib import Path

import torch

from contrastive_core.errors import UserError
from contrastive_core.training import Run, RunOptions
from ssl_medseg.datasets import DataOptions
from ssl_medseg.models import NetworkOptions, UNet, settle_statistics
from ssl_medseg.preprocessing import PreprocessingOptions
from ssl_medseg.pretraining.model import GlobalNetwork, LocalNetwork, save_trunk
from ssl_medseg.pretraining.stages import GlobalKind, GlobalStage, LocalKind, LocalStage, Stage
from ssl_medseg.training.data import keep_identity, open_training_data
from ssl_medseg.training.optim import Pace, adam
from ssl_medseg.training.slices import stack_slices


def pretrain(
    data: str,
    split: Path,
    out: Path,
    *,
    global_loss: GlobalKind = "GD",
    local_loss: LocalKind = "LR",
    global_steps: int = 10_000,
    local_steps: int = 10_000,
    partitions: int = 4,
    global_volumes: int = 6,
    local_volumes: int = 3,
    crop: float = 100 / 192,
    decoder_blocks: int = 3,
    temperature: float = 0.1,
    lr: float = 1e-3,
    network: NetworkOptions = NetworkOptions(),  # noqa: B008 - frozen
    preprocessing: PreprocessingOptions = PreprocessingOptions(),  # noqa: B008
    opening: DataOptions = DataOptions(),  # noqa: B008
    cache: Path | None = None,
    run: RunOptions = RunOptions(),  # noqa: B008
) -> Path:
    """Pre-train the U-Net's trunk on labelled and unlabelled volumes without using a label; `train --init` goes on.

    The parent method: volumes are cut into equally many parts along the slice axis. First the encoder learns to tell
    slices of different parts apart (``GD``: slices of the same part of different volumes are alike; ``GD-``: they are
    no negatives; ``GR``: SimCLR, which knows no parts). Then the encoder is held, and the first decoder blocks learn
    that a region is alike under two changes of intensity and unlike its neighbours (``LR``; ``LD``: alike also in
    slices of the same part of another volume). The defaults are those of the released code. The last weights are kept.
    A run resumes exactly, as one of `train`.

    Args:
        data: Data set: a folder in one of the layouts that `check` names, or a CSV file.
        split: Split file; its labelled and unlabelled cases are used.
        out: Run folder.
        global_loss: Loss of the encoder.
        local_loss: Loss of the decoder.
        global_steps: Training steps of the first stage; 0 leaves it out.
        local_steps: Training steps of the second stage; 0 leaves it out.
        partitions: Number of parts of a volume; volumes with fewer slices are left out.
        global_volumes: Volumes per step and process in the first stage, with one slice of each of their parts.
        local_volumes: Volumes per step and process in the second stage, with one slice of each of their parts.
        crop: Side of the random box that a view of the first stage shows, as a share of the side of the slice.
        decoder_blocks: Number of decoder blocks in the second stage, 1 to 5.
        temperature: Temperature of both losses.
        lr: Learning rate of Adam.
        network: Network; the paper's U-Net, since others have no decoder blocks to name.
        preprocessing: Preprocessing settings; those that are not given are derived from the data.
        opening: How to open the data set.
        cache: Folder that keeps prepared volumes; runs may share it.
        run: How the run is executed: seed, device, precision, checkpoints, logs.

    Returns:
        The folder of the pre-trained trunk.
    """
    config = dict(locals())
    if min(global_steps, local_steps) < 0 or global_steps + local_steps == 0 or partitions < 1 or not 0 < crop <= 1:
        raise UserError(
            f"pretrain needs steps of at least 0 and some, partitions of at least 1 and 0 < crop <= 1; got "
            f"{global_steps} and {local_steps}, {partitions} and {crop}"
        )
    if network.name != "unet":
        raise UserError(f"network.name is {network.name}; pretrain knows the encoder and decoder blocks of unet alone")
    seen = open_training_data(data, split, opening=opening, preprocessing=preprocessing, unlabelled=True, cache=cache)
    slices = stack_slices([*seen.labelled, *seen.unlabelled])
    height, width = slices.images.shape[2:]
    with Run(out, config=config, command="ssl-medseg pretrain", options=run, free=("cache", "data", "split")) as r:
        keep_identity(r, seen)  # data are known by their content, wherever they lie
        for note in seen.notes:
            r.say(note)
        torch.manual_seed(r.seed("weights"))
        trunk = UNet(len(seen.preprocessing.channels), network.width)
        encoder = GlobalNetwork(trunk, (height, width))
        decoder = LocalNetwork(trunk, blocks=decoder_blocks)
        for each in (encoder, decoder):
            settle_statistics(each, steps=max(1, min(filter(None, (global_steps, local_steps)))))
            each.to(memory_format=torch.channels_last)
        # Over several processes a stage waits for the gradients of what it trains, and of nothing else.
        models, optimizers = {}, {}
        for name, each in (("global", encoder), ("local", decoder)):
            each.requires_grad_(False)
            for parameter in each.trained:
                parameter.requires_grad_(True)
            models[name], optimizers[name] = r.setup(each, adam(each.trained, lr=lr))
        for each in (encoder, decoder):
            for parameter in each.trained:
                parameter.requires_grad_(True)
        # Not the two networks: they share the trunk.
        r.track(trunk=trunk, global_head=encoder.head, local_head=decoder.head)
        r.track(global_optimizer=optimizers["global"], local_optimizer=optimizers["local"])
        stages: dict[str, Stage] = {
            "global": GlobalStage(
                r, slices, kind=global_loss, partitions=partitions, volumes=global_volumes, crop=crop,
                temperature=temperature,
            ),
            "local": LocalStage(
                r, slices, kind=local_loss, partitions=partitions, volumes=local_volumes, temperature=temperature
            ),
        }  # fmt: skip
        left_out = stages["global"].batches.left_out
        if left_out:
            r.say(f"note: {left_out} volumes have fewer than {partitions} slices and are left out")
        total = global_steps + local_steps
        pace = Pace(r, total, each="slices of several volumes")
        for step in r.steps(total):
            name = "global" if step < global_steps else "local"
            loss = stages[name].loss(models[name], step)
            optimizers[name].zero_grad()
            r.fabric.backward(loss)
            optimizers[name].step()
            r.log(**{f"{name}_loss": loss})
            pace.after(step)
        return save_trunk(
            r, trunk, options=network, preprocessing=seen.preprocessing,
            details={"method": "pretrain", "losses": [global_loss, local_loss], "blocks": decoder_blocks,
                     "steps": total, "cases": list(slices.names)},
        )  # fmt: skip
