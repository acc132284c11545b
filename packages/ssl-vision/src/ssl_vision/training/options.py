"""Settings shared by the commands, and the augmentation and optimiser built from them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from contrastive_core.errors import UserError
from contrastive_core.optim import LARS, lars_param_groups
from contrastive_core.training.config import check_counts, check_fields
from ssl_vision.augment import SimCLRAugment


@dataclass(frozen=True)
class TrainingOptions:
    """Length of training, batches, and size of the images. Each command has its own defaults.

    Attributes:
        epochs: Number of passes over the training images.
        batch_size: Number of images per step, over all processes.
        image_size: Side in pixels of the square images that the network receives.
    """

    epochs: int
    batch_size: int
    image_size: int | None


@dataclass(frozen=True)
class PretrainingOptions(TrainingOptions):
    """Length of pre-training, batches, size of the views, and saved models.

    Attributes:
        epochs: Number of passes over the images, which recipes also set; images that do not fill the last batch are
            left out of an epoch.
        batch_size: Unlabelled images (pairs of views) per step, over all processes. 0: SuNCEt alone; an epoch is then a
            pass over the labelled images.
        image_size: Side of the views in pixels.
        save_every: Epochs between models saved in ``models/``, starting with the untrained one; 0 for none.
    """

    epochs: int = 0
    batch_size: int = 512
    image_size: int = 32
    save_every: int = 0


@dataclass(frozen=True)
class FinetuningOptions(TrainingOptions):
    """Length of fine-tuning, batches, and size of the crops.

    Attributes:
        epochs: Number of passes over the labelled images; 0 for 60 from a pre-trained model. From scratch, a number or
            a recipe is needed.
        batch_size: Number of images per step, over all processes; all images if there are fewer.
        image_size: Side of the crops in pixels; by default the model's, or 32.
    """

    epochs: int = 0
    batch_size: int = 256
    image_size: int | None = None


@dataclass(frozen=True)
class DistillationOptions(TrainingOptions):
    """Length of distillation, batches, and size of the crops.

    Attributes:
        epochs: Number of passes over the images, which recipes also set.
        image_size: Side of the student's crops in pixels; by default that of the model it starts from, otherwise the
            teacher's. The teacher sees the same crops at its own size.
    """

    epochs: int = 0
    batch_size: int = 256
    image_size: int | None = None


@dataclass(frozen=True)
class ValidationOptions:
    """Images that are scored during training. The scores do not affect it.

    Attributes:
        validate_on: Validation images to score during training: a label file of images that are then held out of it, or
            the name of another split, never the test split.
        validate_every: Number of epochs between scores.
    """

    validate_on: str | None = None
    validate_every: int = 5

    def __post_init__(self) -> None:
        check_counts(self, validate_every=1)


@dataclass(frozen=True)
class AugmentOptions:
    """Augmentation that makes the views.

    Attributes:
        strength: Strength of the colour jitter; 1.0 for ImageNet, 0.5 for CIFAR-10.
        blur: Whether half of the views are blurred; not for CIFAR-10.
        flip: Whether half of the views are mirrored; disable it if left and right matter, as in digits.
        gray: Share of the views converted to gray.
        jitter: Share of the views with colour jitter.
        ops: Operations: ``simclr`` as in the official TensorFlow code, or ``torchvision``.
    """

    strength: float = 0.5
    blur: bool = False
    flip: bool = True
    gray: float = 0.2
    jitter: float = 0.8
    ops: Literal["simclr", "torchvision"] = "simclr"

    def __post_init__(self) -> None:
        build_augment(self, 32)  # checks the ranges


def build_augment(options: AugmentOptions, size: int) -> SimCLRAugment:
    """Build the augmentation that makes one view of `size` pixels.

    Raises:
        UserError: A setting is out of range.
    """
    try:
        return SimCLRAugment(
            size, strength=options.strength, blur=options.blur, ops=options.ops, flip=options.flip, gray=options.gray,
            jitter=options.jitter,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"augmentation: {error}") from error


@dataclass(frozen=True)
class HeadOptions:
    """The projection head.

    Attributes:
        layers: Number of linear layers; 2 in SimCLR, 3 in SimCLRv2.
        out_features: Size of the projection that the loss sees.
    """

    layers: int = 2
    out_features: int = 128

    def __post_init__(self) -> None:
        if self.layers < 1 or self.out_features < 1:
            raise UserError(
                f"head.layers is {self.layers} and head.out_features is {self.out_features}; expected both at least 1"
            )


@dataclass(frozen=True)
class SuNCEtOptions:
    """SuNCEt: labelled images in addition to the unlabelled ones. It is off unless `classes_per_batch` is set.

    Every step uses one view of ``classes_per_batch * images_per_class`` labelled images, over all processes, with the
    same augmentation. They pass through the network together with the pairs; the loss is NT-Xent + weight * SuNCEt.

    The first release of SuNCEt, used in the paper, and the present code of its repository differ in many ways. `code`
    selects the treatment of labelled images after the last epoch with SuNCEt; other fields set the rest: length
    (`until_epoch`: 250 on ImageNet in the release, 100 today), head (`head`), augmentation (`augment`), number format
    (`run.precision`). Their bugs are not reproduced: gradients through one side only (SuNCEt over several processes in
    the release, NT-Xent today), a warm-up that is subtracted from the cosine twice, and weight decay on batch norms
    because of their names.

    Attributes:
        classes_per_batch: Number of classes in a step; 0: no SuNCEt.
        images_per_class: Number of labelled images per class in a step, over all processes; at least 2.
        labels: Label file, as written by `make-splits`, or a list of file names; by default every image of the part is
            labelled. Labels of images that are not listed are never read.
        data: Folder, manifest or named set of the labelled images, if they are not among the unlabelled ones.
        until_epoch: Number of epochs with SuNCEt, from the first; by default all.
        weight: Weight of SuNCEt relative to NT-Xent; 1 in the paper.
        temperature: Temperature of SuNCEt; by default that of NT-Xent.
        label_smoothing: Share of the label spread over all classes of the step; 0 in the paper.
        code: Behaviour after the last epoch with SuNCEt: with ``release`` labelled images are no longer read, with
            ``today`` they still pass through the network, where batch norm sees them.
    """

    classes_per_batch: int = 0
    images_per_class: int = 16
    labels: Path | None = None
    data: str | None = None
    until_epoch: float | None = None
    weight: float = 1.0
    temperature: float | None = None
    label_smoothing: float = 0.0
    code: Literal["release", "today"] = "release"

    def __post_init__(self) -> None:
        if self.classes_per_batch < 0 or self.classes_per_batch == 1 or self.images_per_class < 2:
            raise UserError(
                f"suncet.classes_per_batch is {self.classes_per_batch} and suncet.images_per_class "
                f"{self.images_per_class}; expected at least 2 of both, or 0 classes for no SuNCEt: each image needs "
                "another one of its own class"
            )
        for name, value, lowest in (
            ("until_epoch", self.until_epoch, 0.0),
            ("weight", self.weight, 0.0),
            ("temperature", self.temperature, None),
        ):
            if value is not None and not (value > 0 or value == lowest):
                raise UserError(f"suncet.{name} is {value}; expected {'more than' if lowest is None else 'at least'} 0")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"suncet.label_smoothing is {self.label_smoothing}; expected at least 0 and less than 1")

    @property
    def batch_size(self) -> int:
        """Labelled images per step, over all processes."""
        return self.classes_per_batch * self.images_per_class

    def steps(self, *, epochs: int, steps_per_epoch: int) -> int:
        """Return the number of steps with SuNCEt in a run, from its first step."""
        if not self.classes_per_batch:
            return 0
        return round(steps_per_epoch * (epochs if self.until_epoch is None else min(self.until_epoch, epochs)))


@dataclass(frozen=True)
class MemoryOptions:
    """SimCLRv2's memory: projections of a momentum network as additional negatives. It is off by default.

    The released code has no memory; this is our reading of section 2 of the paper. A moving average of the network
    projects the second views of every step, and the last `projections` of them are negatives of NT-Xent in addition to
    the views of the batch. Its batch norm uses the statistics of its batch. The cost is one more forward pass of one
    view.

    Attributes:
        projections: Number of projections stored, smaller than the number of images; 65536 in the paper; 0: no memory.
        decay: Decay of the moving average per step; 0.999 in the paper.
    """

    projections: int = 0
    decay: float = 0.999

    def __post_init__(self) -> None:
        if self.projections < 0 or not 0 <= self.decay < 1:
            raise UserError(
                f"memory.projections is {self.projections} and memory.decay {self.decay}; expected at least 0 "
                "projections, and a decay of at least 0 and less than 1"
            )


_LARGEST_ADAMW = 0.1


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimiser and schedule: warm-up from 0, then a half cosine to 0.

    Attributes:
        name: Optimiser: ``lars`` as in the papers, ``sgd`` (Nesterov) for small batches, ``adamw`` for transformers.
        lr: Base learning rate.
        scaling: Scaling of the peak rate: ``linear``, ``lr * batch / 256``, or ``sqrt``, ``lr * sqrt(batch)``.
        warmup_epochs: Number of epochs of linear warm-up; by default 10, as in the papers, or a tenth of a run of fewer
            than 100 epochs.
        momentum: Momentum; the first of AdamW's two decay rates, the second of which is 0.999.
        weight_decay: Weight decay; not applied to normalisation layers and biases.
        layer_decay: Factor of the learning rate from each block of the network to the one before it; 1: the same rate
            everywhere. Pre-trained transformers are fine-tuned with 0.65 to 0.85.
    """

    name: Literal["lars", "sgd", "adamw"] = "lars"
    lr: float = 1.0
    scaling: Literal["linear", "sqrt"] = "linear"
    warmup_epochs: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-6
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        if self.name == "adamw" and self.lr > _LARGEST_ADAMW:
            raise UserError(
                f"optimizer.lr is {self.lr:g} with adamw, which moves every weight by about that much per step; "
                f"expected at most {_LARGEST_ADAMW:g}, for example 1e-3 to train and 1e-4 to continue from a "
                "pre-trained model (--optimizer.lr)"
            )
        nesterov = self.name == "sgd"
        check_fields(
            self,
            "optimizer",
            lr=(0 < self.lr < math.inf, "a finite number above 0"),
            momentum=(0 <= self.momentum < 1 and (self.momentum > 0 or not nesterov), "in [0, 1), for sgd above 0"),
            weight_decay=(0 <= self.weight_decay < math.inf, "a finite number, at least 0"),
            layer_decay=(0 < self.layer_decay <= 1, "above 0 and at most 1"),
        )

    def warmup_steps(self, *, epochs: int, steps_per_epoch: float) -> int:
        """Return the number of warm-up steps in a run of this length.

        Raises:
            UserError: The warm-up does not end before the run.
        """
        warmup = min(10.0, epochs / 10) if self.warmup_epochs is None else self.warmup_epochs
        if not 0 <= warmup < epochs:
            raise UserError(
                f"optimizer.warmup_epochs is {warmup:g} in a run of {epochs} epochs; expected at least 0 and less than "
                "the length of the run"
            )
        return round(warmup * steps_per_epoch)


def build_optimizer(
    model: nn.Module, options: OptimizerOptions, *, lr: float, unadapted: tuple[str, ...] = ()
) -> torch.optim.Optimizer:
    """Build the optimiser; normalisation layers and biases have no weight decay and no adaptation by LARS.

    Args:
        model: Model whose parameters are optimised.
        options: Optimiser and its settings.
        lr: Peak learning rate.
        unadapted: Submodules whose weights LARS decays but does not adapt, as in the released code for its linear
            layer: at weights near zero, adaptation would hardly move it.
    """
    groups = lars_param_groups(model, options.weight_decay)
    if options.name == "lars":
        unadapted_ids = {id(p) for name in unadapted for p in model.get_submodule(name).parameters()}
        weights = groups[0]["params"]
        groups[0]["params"] = [p for p in weights if id(p) not in unadapted_ids]
        unadapted_weights = [p for p in weights if id(p) in unadapted_ids]
        if unadapted_weights:
            groups.append({"params": unadapted_weights, "weight_decay": options.weight_decay, "adapt": False})
    groups = _by_layer(model, groups, options.layer_decay)
    if options.name == "lars":
        return LARS(groups, lr, momentum=options.momentum)
    for group in groups:
        group.pop("adapt", None)
    if options.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(options.momentum, 0.999))
    return torch.optim.SGD(groups, lr=lr, momentum=options.momentum, nesterov=True)


_BLOCK = re.compile(
    r"(?:^|\.)((?:blocks|layers|stages|features|layer\d+)(?:\.(?:encoder_layer_)?\d+)*(?:\.blocks\.\d+)?)\."
)


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Return the depth of every parameter by name: 0 before the first block of the network, then counted by blocks.

    Blocks are found by their names in torchvision, timm and our encoders (``layer2.0``, ``blocks.3``,
    ``stages.1.blocks.2``); parameters after the last block, such as a projection head, are the deepest.
    """
    blocks: dict[str, int] = {}
    depths: dict[str, int] = {}
    for name, _ in model.named_parameters():
        match = _BLOCK.search(name) if not name.startswith(("head.", "neck.", "fc.")) else None
        if match:
            depths[name] = blocks.setdefault(match[1], len(blocks) + 1)
        else:
            depths[name] = len(blocks) + 1 if blocks else 0
    return depths


def _by_layer(model: nn.Module, groups: list[dict[str, Any]], decay: float) -> list[dict[str, Any]]:
    """Add a factor ``lr_scale`` of the learning rate to each group, split by depth if rates differ."""
    if decay == 1:
        return groups
    depths = layer_depths(model)
    depth = {id(p): depths[name] for name, p in model.named_parameters()}
    deepest = max(depths.values(), default=0)
    split: list[dict[str, Any]] = []
    for group in groups:
        for level in sorted({depth[id(p)] for p in group["params"]}):
            members = [p for p in group["params"] if depth[id(p)] == level]
            split.append({**group, "params": members, "lr_scale": decay ** (deepest - level)})
    return split
