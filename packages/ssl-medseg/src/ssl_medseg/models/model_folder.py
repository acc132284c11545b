"""Save and load segmenters with their labels and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from contrastive_core.training.config import from_plain
from contrastive_core.training.documents import reading
from contrastive_core.training.launch import choose_device
from contrastive_core.training.model_file import build_from, load_model, save_model
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.models import NetworkOptions, SegmentationNetwork, build_network
from ssl_medseg.models.monai import opened_options
from ssl_medseg.models.network import Refinement
from ssl_medseg.preprocessing import Preprocessing

if TYPE_CHECKING:  # the engine takes a second to import, which opening a model need not wait for
    from contrastive_core.training import Run

FORMAT = "ssl-medseg segmenter 1"


@dataclass(frozen=True)
class Segmenter:
    """A trained network in inference mode, with its labels and preprocessing.

    Attributes:
        network: Network on its device; maps slices [N, channels, H, W] to logits [N, C, H, W].
        options: Options of the network.
        labels: Names of the classes, and their values in mask files.
        preprocessing: Preprocessing of volumes, including the channels and their order.
        details: Record of the training, for reports: data, split, steps, selection of the weights.
        device: Device of the network.
        refinement: Test-time processing in addition to a single forward pass.
    """

    network: SegmentationNetwork
    options: NetworkOptions
    labels: LabelMap
    preprocessing: Preprocessing
    details: dict[str, Any]
    device: torch.device
    refinement: Refinement


def save_segmenter(
    target: Run | Path,
    network: nn.Module,
    *,
    options: NetworkOptions,
    labels: LabelMap,
    preprocessing: Preprocessing,
    details: Mapping[str, object] | None = None,
    refinement: Refinement = Refinement(),  # noqa: B008 - frozen
    folder: str = "model",
) -> Path:
    """Save a segmenter in a folder of a run (on process 0), or in the folder `target`.

    Args:
        target: Run, or folder to write.
        network: Network from `build_network`, or its moving average.
        options: Options of the network.
        labels: Label map of its classes.
        preprocessing: Preprocessing used in training.
        details: Plain values that describe the training.
        refinement: Test-time processing in addition to a single forward pass.
        folder: Name of the folder inside the run.

    Returns:
        The folder.
    """
    card = {
        "format": FORMAT,
        "network": asdict(options),
        "labels": labels.to_json(),
        "preprocessing": preprocessing.to_json(),
        "details": dict(details or {}),
        "refinement": {"mirror": refinement.mirror, "largest": list(refinement.largest)},
    }
    tensors = dict(network.state_dict())
    if isinstance(target, Path):
        return save_model(target, tensors, card)
    return target.save_model(tensors, card, folder=folder)


def load_segmenter(model: str | Path, *, device: str = "auto") -> Segmenter:
    """Load a trained segmenter from its run folder or model folder.

    Args:
        model: Run folder, or the folder `model` in it.
        device: Device; ``auto`` prefers CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: The folder contains no model, a damaged one, or one of another kind.
    """
    place = choose_device(device)
    remedy = "give the run folder of `ssl-medseg train`, `selftrain` or `run`"
    tensors, card = load_model(model, formats=(FORMAT,), remedy=remedy)
    with reading(
        model, "model.json does not describe a segmenter", "the file was changed by hand, or a newer version wrote it"
    ):
        options = from_plain(NetworkOptions, card["network"], "network")
        labels = LabelMap.from_json(card["labels"])
        preprocessing = from_plain(Preprocessing, card["preprocessing"], "preprocessing")
        details = dict(card["details"])
        refined = card.get("refinement", {})
        refinement = Refinement(bool(refined.get("mirror")), tuple(int(c) for c in refined.get("largest", ())))
    options = opened_options(options, model=model)
    channels = len(preprocessing.channels)
    network = build_from(lambda: build_network(options, len(labels), channels=channels), tensors, source=model)
    ready = network.eval().to(place)
    return Segmenter(ready, options, labels, preprocessing, details, place, refinement)
