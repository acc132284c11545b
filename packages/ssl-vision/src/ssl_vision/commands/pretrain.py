"""`ssl-vision pretrain`: pre-train with SimCLR, SuNCEt or both. One training loop, meant to be copied and changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_core.distributed import gather_rows, rank
from contrastive_core.errors import UserError
from contrastive_core.grad_cache import BatchNorm, batch_norms
from contrastive_core.losses import SuNCEtLoss, nt_xent
from contrastive_core.training import Run, RunOptions
from ssl_vision.data import open_images
from ssl_vision.data.dataset import UnlabelledReadOptions
from ssl_vision.methods import MomentumMemory, SimCLR
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import build_simclr, open_pretrained, save_encoder, with_statistics
from ssl_vision.training.loading import FREE, Feed, open_labelled
from ssl_vision.training.options import (
    AugmentOptions,
    HeadOptions,
    MemoryOptions,
    OptimizerOptions,
    PretrainingOptions,
    SuNCEtOptions,
    build_augment,
)
from ssl_vision.training.setup import set_up

RECIPES = """\
  simclr-cifar10-cpu         32 px, quarter-width ResNet-18, 10 epochs: half an hour for 50,000 images on a CPU core
  simclrv2-cifar10-cpu       the same with SimCLRv2's head
  suncet-cifar10-cpu         the same with labelled images in every step (--suncet.labels FILE)
  simclr-cifar10-resnet18    32 px, ResNet-18, 1,000 epochs on one GPU, as in the released code
  simclr-cifar10             32 px, ResNet-50, 1,000 epochs on one or several GPUs, as in the paper
  suncet-cifar10             32 px, ResNet-50, 500 epochs on one or several GPUs
  simclr-imagenet            224 px, ResNet-50, 100 epochs at batch 4096 on dozens of GPUs, as in the paper
  simclrv2-imagenet          224 px, with SimCLRv2's settings
  suncet-imagenet            224 px, with labelled images in every step"""
"""Recipes and their cost, shown if no length is given."""


def pretrain(
    data: str,
    out: Path,
    *,
    part: str = "train",
    init: str | None = None,
    training: PretrainingOptions = PretrainingOptions(),  # noqa: B008 - frozen
    temperature: float = 0.5,
    encoder: EncoderOptions = EncoderOptions(),  # noqa: B008
    head: HeadOptions = HeadOptions(),  # noqa: B008
    augment: AugmentOptions = AugmentOptions(),  # noqa: B008
    optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
    suncet: SuNCEtOptions = SuNCEtOptions(),  # noqa: B008
    memory: MemoryOptions = MemoryOptions(),  # noqa: B008
    grad_cache: int = 0,
    grad_cache_norm: BatchNorm = "refuse",
    read: UnlabelledReadOptions = UnlabelledReadOptions(),  # noqa: B008
    run: RunOptions = RunOptions(),  # noqa: B008
) -> Path:
    """Pre-train an encoder with SimCLR on unlabelled images, optionally with SuNCEt on a few labelled ones.

    Without a recipe, the defaults are the paper's for CIFAR-10 with a ResNet-18; ``--config simclr-imagenet`` is the
    recipe for ImageNet. No label is read without ``suncet``; with it, only the labels that it lists. A run is a
    function of its arguments and its seed: if it is interrupted and resumed with ``--resume``, it ends, on a CPU, with
    the same bytes.

    Args:
        data: Image folder (with or without classes), CSV manifest, or named data set such as ``cifar10:ROOT``.
        out: Folder of the run: configuration, metrics, checkpoints, model.
        part: Part of the data to train on.
        init: Initial weights: a run folder or model folder, whose encoder is used, and its projection head if it has
            the shape given by `head`; by default those of ``encoder.weights``, or random ones.
        training: Length of training, batches, size of the views, and saved models.
        temperature: Temperature of NT-Xent.
        encoder: Network, without `init`.
        head: Projection head.
        augment: Augmentation that makes the views.
        optimizer: Optimiser and schedule. The learning rate is scaled by half the number of images that pass through
            the network in a step (batch_size without SuNCEt), so that steps with equal work have equal rates.
        suncet: Labelled images used in addition to the unlabelled ones.
        memory: SimCLRv2's memory of negatives.
        grad_cache: Number of views that each process passes through the encoder at a time, which limits the memory to
            that of these views; steps take up to a third longer. 0 for all at once. The gradient is the same if the
            encoder has no batch norm.
        grad_cache_norm: Whether to ``refuse`` encoders with batch norm, or to compute its statistics per ``chunk``,
            which is another method: rows are assigned to chunks at random.
        read: Source of the images, limit for unreadable ones, and options for reading image files.
        run: Seed, device, precision, checkpoints, logs.

    Returns:
        Path of the trained model.
    """
    config = dict(locals())
    epochs, batch_size, image_size = training.epochs, training.batch_size, training.image_size
    _check(training, temperature=temperature, suncet=suncet, memory=memory)
    start = open_pretrained(
        init, encoder=encoder, image_size=image_size, layers=head.layers, out_features=head.out_features
    )
    encoder, read = (encoder, read) if start is None else (start.options, read.for_model(start.bits))
    unlabelled = open_images(data, split=part, channels=encoder.image_channels, read=read) if batch_size else None
    labelled = (
        open_labelled(suncet, data, split=part, channels=encoder.image_channels, read=read)
        if suncet.batch_size
        else None
    )
    encoder = with_statistics(encoder, unlabelled or labelled)
    resolved = {"encoder": replace(encoder, weights=config["encoder"].weights), "read": read}
    with Run(out, config=config, command="ssl-vision pretrain", options=run, free=FREE, resolved=resolved) as r:
        feed = Feed(
            r, unlabelled, labelled, suncet,
            epochs=epochs, batch_size=batch_size, augment=build_augment(augment, image_size), read=read,
        )  # fmt: skip
        total_steps, steps_per_epoch = feed.total_steps, feed.steps_per_epoch
        gather = r.world_size > 1
        suncet_loss = SuNCEtLoss(
            temperature=suncet.temperature or temperature, label_smoothing=suncet.label_smoothing, gather=gather
        )

        torch.manual_seed(r.seed("weights"))
        network = build_simclr(encoder, image_size=image_size, layers=head.layers, out_features=head.out_features)
        if start is not None:
            start.copy_to(network)
        chunks = _chunks(network, grad_cache, grad_cache_norm, compiled=run.compile)
        r.say(feed.summary)
        model, optim, schedule = set_up(
            r, network, optimizer, unlabelled=unlabelled, labelled=labelled,
            batch_size=feed.inputs(0) // 2, epochs=epochs, total_steps=total_steps,
        )  # fmt: skip
        weight = {"nt_xent": 1.0, "suncet": suncet.weight}
        past = MomentumMemory(network, size=memory.projections, decay=memory.decay) if memory.projections else None
        if past:
            r.track(memory=past)

        def save(epoch: int, folder: str) -> Path:
            return save_encoder(
                r, network, encoder=encoder, image_size=image_size, epoch=epoch, start=start, bits=read.bits,
                folder=folder,
            )  # fmt: skip

        for step in r.steps(total_steps):
            if training.save_every and step % (training.save_every * steps_per_epoch) == 0:
                epoch = step // steps_per_epoch
                save(epoch, f"models/epoch-{epoch:04d}")
            batch = feed.batch(step)
            z = model(*batch.pair, *batch.labelled, **chunks)
            losses = {}
            if batch.pair:
                bank = past.negatives if past else None
                losses["nt_xent"] = nt_xent(z[0], z[1], bank, temperature=temperature, gather=gather)
            if step < feed.suncet_steps:
                losses["suncet"] = suncet_loss(z[-1], batch.classes)
            loss = torch.stack([weight[name] * value for name, value in losses.items()]).sum()
            optim.zero_grad()
            r.fabric.backward(loss)
            lr = optim.param_groups[0]["lr"]
            optim.step()
            schedule.step()
            if past:
                with r.fabric.autocast():
                    past.update(network, batch.pair[1], gather=gather, **chunks)
            r.log(loss=loss, **losses, lr=lr, epoch=(step + 1) / steps_per_epoch, inputs=feed.inputs_until(step + 1))
            if batch.pair and r.is_logged_step:
                r.log(contrastive_accuracy=contrastive_accuracy(z[0], z[1]))
        return save(epochs, "model")


def _check(training: PretrainingOptions, *, temperature: float, suncet: SuNCEtOptions, memory: MemoryOptions) -> None:
    epochs, batch_size = training.epochs, training.batch_size
    if epochs == 0:
        raise UserError(f"pretrain needs a length: expected --epochs, or --config with a recipe\n{RECIPES}")
    if epochs < 1 or temperature <= 0:
        raise UserError(f"pretrain needs epochs >= 1 and temperature > 0, got {epochs} and {temperature}")
    if batch_size < 0 or (batch_size == 0 and (suncet.batch_size == 0 or suncet.until_epoch is not None)):
        raise UserError(
            f"batch_size is {batch_size}; expected at least 1, or 0 with suncet in all epochs for SuNCEt alone"
        )
    if memory.projections and not batch_size:
        raise UserError(
            f"memory.projections is {memory.projections} with SuNCEt alone, which does not use it; expected 0"
        )


def _chunks(network: SimCLR, grad_cache: int, batch_norm: BatchNorm, *, compiled: bool) -> dict[str, Any]:
    """Return the arguments of `SimCLR` for chunks, checked before training starts."""
    if not grad_cache:
        return {}
    if grad_cache < 1:
        raise UserError(f"grad_cache is {grad_cache}; expected at least 1 view at a time, or 0 for all")
    norms = batch_norms(network.encoder)
    if norms and batch_norm == "refuse":
        raise UserError(
            f"grad_cache is {grad_cache}, and the encoder has batch norm ({norms[0]} and {len(norms) - 1} more), whose "
            "statistics would be those of a chunk. Use an encoder without it (torchvision:vit_b_16, "
            "torchvision:convnext_tiny), or allow it by --grad-cache-norm chunk"
        )
    if compiled:
        raise UserError("grad_cache cannot be compiled together with the network; leave out --compile or --grad-cache")
    return {"chunk_size": grad_cache, "batch_norm": batch_norm}


@torch.no_grad()
def contrastive_accuracy(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Return the share of first views whose most similar second view, over all processes, is their own."""
    z_a, z_b = (nn.functional.normalize(z.float(), dim=1) for z in (z_a, z_b))
    others = gather_rows(z_b).T
    # In parts, because all similarities of a large batch would not fit into memory.
    nearest = torch.cat([(rows @ others).argmax(dim=1) for rows in torch.split(z_a, 1024)])
    own = torch.arange(len(z_a), device=z_a.device) + rank() * len(z_a)
    accuracy: Tensor = (nearest == own).float().mean()
    return accuracy
