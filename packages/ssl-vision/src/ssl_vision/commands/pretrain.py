"""SimCLR pre-training: `ssl-vision pretrain`. One readable loop; copy it and change it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from contrastive_core.distributed import gather_rows, rank
from contrastive_core.errors import UserError
from contrastive_core.losses import nt_xent
from contrastive_core.optim import WarmupCosine, scaled_lr
from contrastive_core.train import Batches, Run, RunOptions
from ssl_vision.data import open_images, skip_bad
from ssl_vision.methods import SimCLR
from ssl_vision.model_folder import save_encoder
from ssl_vision.models import EncoderOptions, build_encoder
from ssl_vision.options import AugmentOptions, HeadOptions, OptimizerOptions, build_augment, build_optimizer
from ssl_vision.views import open_views


def pretrain(
    data: str,
    out: Path,
    *,
    split: str = "train",
    epochs: int = 1000,
    batch_size: int = 512,
    image_size: int = 32,
    temperature: float = 0.5,
    encoder: EncoderOptions = EncoderOptions(),  # noqa: B008 - frozen
    head: HeadOptions = HeadOptions(),  # noqa: B008
    augment: AugmentOptions = AugmentOptions(),  # noqa: B008
    optimizer: OptimizerOptions = OptimizerOptions(),  # noqa: B008
    save_every: int = 0,
    load: Literal["auto", "memory", "files"] = "auto",
    max_bad: float = 0.01,
    run: RunOptions = RunOptions(),  # noqa: B008
) -> Path:
    """Pre-train an encoder with SimCLR on images without labels.

    The defaults are the paper's recipe for CIFAR-10 with a ResNet-18; ``--config simclr-imagenet`` is that for
    ImageNet. Labels are never read. A run is a function of its arguments and seed alone: stopped or killed anywhere and
    continued with ``--resume`` it ends, on a CPU, in the same bytes.

    Args:
        data: an image folder (with or without classes), a CSV manifest, or a named data set such as ``cifar10:ROOT``.
        out: the run's folder: config, metrics, checkpoints, model.
        split: which part of the data to train on.
        epochs: passes over the images; what does not fill a last batch is left out of an epoch.
        batch_size: images (pairs of views) per step, over all processes.
        image_size: side of the views in pixels.
        temperature: of NT-Xent.
        encoder: the network.
        head: the projection head.
        augment: the family of views.
        optimizer: optimiser and schedule.
        save_every: also keep the model of every this many epochs, the untrained one included, under ``models/``.
        load: ``memory`` decodes all images once, ``files`` reads an image again for every view; ``auto`` takes memory
            for small images of one size. The result is the same.
        max_bad: share of the images that may be unreadable; they are listed in ``bad_files.jsonl`` and the next image
            stands in for each. One more ends the run.
        run: seed, device, precision, checkpoints, logs.

    Returns:
        The folder of the trained model.
    """
    config = dict(locals())
    if epochs < 1 or temperature <= 0:
        raise UserError(f"pretrain needs epochs >= 1 and temperature > 0, got {epochs} and {temperature}")
    images = open_images(data, split=split)
    with Run(out, config=config, command="ssl-vision pretrain", options=run, free=("load",)) as r:
        if batch_size % r.world_size:
            raise UserError(
                f"batch_size {batch_size} cannot be shared evenly by {r.world_size} processes; choose a multiple"
            )
        steps_per_epoch = len(images) // batch_size
        total_steps = epochs * steps_per_epoch
        batches = Batches(
            len(images),
            batch_size=batch_size // r.world_size,
            seed=r.seed("order"),
            rank=r.rank,
            world_size=r.world_size,
            total_steps=total_steps,
        )
        readable = skip_bad(images, max_bad=max_bad, log=out / "bad_files.jsonl")
        view_of = build_augment(augment, image_size)
        views = open_views(readable, batches, view_of, seed=r.seed("views"), load=load, workers=run.workers)

        torch.manual_seed(r.seed("weights"))
        network = SimCLR(
            build_encoder(encoder, image_size=image_size), projection_dim=head.out_features, layers=head.layers
        ).to(memory_format=torch.channels_last)
        peak_lr = scaled_lr(optimizer.lr, batch_size, rule=optimizer.scaling)
        model, optim = r.setup(network, build_optimizer(network, optimizer, lr=peak_lr))
        warmup_steps = optimizer.warmup_steps(epochs=epochs, steps_per_epoch=steps_per_epoch)
        schedule = WarmupCosine(optim, peak_lr=peak_lr, warmup_steps=warmup_steps, total_steps=total_steps)
        r.track(model=model, optimizer=optim, schedule=schedule)

        def save(epoch: int, folder: str) -> Path:
            return save_encoder(r, network, encoder=encoder, image_size=image_size, epoch=epoch, folder=folder)

        for step in r.steps(total_steps):
            if save_every and step % (save_every * steps_per_epoch) == 0:
                epoch = step // steps_per_epoch
                save(epoch, f"models/epoch-{epoch:04d}")
            view_a, view_b = views.batch(step, r.device)
            z_a, z_b = model(view_a, view_b)
            loss = nt_xent(z_a, z_b, temperature=temperature, gather=r.world_size > 1)
            optim.zero_grad()
            r.fabric.backward(loss)
            lr = optim.param_groups[0]["lr"]
            optim.step()
            schedule.step()
            r.log(loss=loss, lr=lr, epoch=(step + 1) / steps_per_epoch)
            if r.is_logged_step:
                r.log(contrastive_accuracy=contrastive_accuracy(z_a, z_b))
        return save(epochs, "model")


@torch.no_grad()
def contrastive_accuracy(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Share of first views whose most similar second view, of those of all processes, is their own."""
    z_a, z_b = (nn.functional.normalize(z.float(), dim=1) for z in (z_a, z_b))
    nearest = (z_a @ gather_rows(z_b).T).argmax(dim=1)
    own = torch.arange(len(z_a), device=z_a.device) + rank() * len(z_a)
    accuracy: Tensor = (nearest == own).float().mean()
    return accuracy
