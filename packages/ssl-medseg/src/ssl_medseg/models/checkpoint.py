"""Read and write the `model/` folder of a run: a segmenter with its labels and preprocessing."""

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
from ssl_medseg.models.network import Refinement
from ssl_medseg.preprocessing import Preprocessing

if TYPE_CHECKING:  # the engine takes a second to import, which opening a model need not wait for
    from contrastive_core.training import Run

FORMAT = "ssl-medseg segmenter 1"


@dataclass(frozen=True)
class Segmenter:
    """A trained network in inference mode with what belongs to it.

    Attributes:
        network: on its device; slices [N, channels, H, W] -> logits [N, C, H, W].
        options: how it is built.
        labels: what its classes are, and the values that stand for them in mask files.
        preprocessing: what is done to a volume before it, and which channels it has, in order.
        details: how it came about, for reports: data, split, steps, how its weights were chosen.
        device: where the network is.
        refinement: what prediction does beyond one pass of the network.
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
    """Write a segmenter to the folder `folder` of a run (on process 0), or to the folder that `target` is.

    Args:
        target: the run, or where to write.
        network: what `build_network` gave, or its moving average; its weights are written.
        options: how it was built.
        labels: of its classes.
        preprocessing: it was trained with.
        details: plain values that say how it came about.
        refinement: what prediction is to do beyond one pass of the network.
        folder: name inside the run.

    Returns:
        The folder written.
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
    """Open the run folder or model folder of a trained segmenter.

    Args:
        model: a run folder, or the folder `model` in one.
        device: where to put it; ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        UserError: no model there, a damaged one, or one of another kind.
    """
    place = choose_device(device)
    remedy = "point at the out folder of `ssl-medseg train`, `selftrain` or `run`"
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
    channels = len(preprocessing.channels)
    network = build_from(lambda: build_network(options, len(labels), channels=channels), tensors, source=model)
    ready = network.eval().to(place)
    return Segmenter(ready, options, labels, preprocessing, details, place, refinement)
