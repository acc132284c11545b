"""Define the networks of the pre-training stages, and store the trunk for `train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training import Run, load_model
from contrastive_core.training.config import from_plain
from contrastive_core.training.documents import reading
from ssl_medseg.models import NetworkOptions, UNet
from ssl_medseg.models.model_folder import FORMAT as SEGMENTER
from ssl_medseg.models.monai import opened_options
from ssl_medseg.models.network import BLOCKS, batch_norm, he_init
from ssl_medseg.preprocessing import Preprocessing
from ssl_medseg.preprocessing.plan import PreprocessingOptions


class GlobalNetwork(nn.Module):
    """Encoder with the projection head g1: flatten, a dense layer with ReLU, and a second dense layer, without biases.

    Maps [N, K, H, W] to [N, embedding], where K is the number of channels and H and W are given by `size`. The decoder
    is not used.

    Args:
        trunk: U-Net.
        size: Height and width of the slices, multiples of 32.
        hidden: Width of the first layer; 1024 in the paper.
        embedding: Width of the second layer; 128 in the paper.
    """

    def __init__(self, trunk: UNet, size: tuple[int, int], *, hidden: int = 1024, embedding: int = 128) -> None:
        super().__init__()
        self.trunk = trunk
        deepest = trunk.bottleneck_channels * (size[0] // trunk.stride) * (size[1] // trunk.stride)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(deepest, hidden, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, embedding, bias=False),
        )

    @property
    def trained(self) -> list[nn.Parameter]:
        """Parameters of the encoder and the head."""
        return [*self.trunk.down.parameters(), *self.head.parameters()]

    def forward(self, images: Tensor) -> Tensor:
        z: Tensor = self.head(self.trunk.encode(images)[-1])
        return z


class LocalNetwork(nn.Module):
    """Frozen encoder, the first decoder blocks, and the head g2: two 1x1 convolutions without bias.

    Maps [N, K, H, W] to [N, F, h, w] at the resolution of the last block. The encoder runs in inference mode, without
    gradient.

    Args:
        trunk: U-Net with a pre-trained encoder.
        blocks: Number of decoder blocks, 1 to 5; 3 in the paper, a quarter of the resolution.
    """

    def __init__(self, trunk: UNet, *, blocks: int = 3) -> None:
        super().__init__()
        if not 1 <= blocks <= BLOCKS:
            raise UserError(f"blocks is {blocks}; expected 1 to {BLOCKS}, the decoder blocks of the U-Net")
        self.trunk, self.blocks = trunk, blocks
        channels = trunk.feature_channels * (8, 8, 4, 2, 1)[blocks - 1]
        self.head = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            batch_norm(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1, bias=False),
        )
        he_init(self.head)

    @property
    def trained(self) -> list[nn.Parameter]:
        """Parameters of the decoder blocks and the head."""
        parts = (self.trunk.up[: self.blocks], self.trunk.join[: self.blocks], self.head)
        return [parameter for part in parts for parameter in part.parameters()]

    def forward(self, images: Tensor) -> Tensor:
        training = self.trunk.down.training
        self.trunk.down.eval()
        with torch.no_grad():
            maps = self.trunk.encode(images)
        self.trunk.down.train(training)
        features: Tensor = self.head(self.trunk.decode(maps, blocks=self.blocks))
        return features


FORMAT = "ssl-medseg trunk 1"


@dataclass(frozen=True)
class Trunk:
    """Weights of a trunk, with its network options and preprocessing, and whether a segmenter contains it."""

    weights: dict[str, Tensor]
    options: NetworkOptions
    preprocessing: Preprocessing
    is_segmenter: bool = False

    def check_options(self, network: NetworkOptions, preprocessing: PreprocessingOptions) -> None:
        """Check that no option contradicts the network and the preprocessing of the weights.

        Raises:
            UserError: An option does; it would have no effect.
        """
        p, trained_with = self.preprocessing, asdict(self.options)
        own = {
            "spacing": (p.spacing or (0.0,))[0], "image_size": p.size[0], "fit": p.fit, "low": p.percentiles[0],
            "high": p.percentiles[1], "antialias": p.antialias, "n4": p.n4, "n4_shrink": p.n4_shrink,
            "fill_nan": p.fill_nan, "orientation": "stored" if p.directions is None else "auto",
        }  # fmt: skip
        options, defaults = asdict(preprocessing), asdict(PreprocessingOptions())
        settings = {f"preprocessing.{key}": (options[key], own[key]) for key in own if options[key] != defaults[key]}
        plane = preprocessing.slice_axis
        if plane not in ("auto", p.plane.removeprefix("oblique "), str(p.slice_axis)):
            settings["preprocessing.slice_axis"] = (plane, p.plane or p.slice_axis)
        settings |= {
            f"network.{key}": (x, trained_with[key])
            for key, x in asdict(network).items()
            if x != asdict(NetworkOptions())[key]
        }
        conflicts = [f"{name} {x} (the weights have {here})" for name, (x, here) in settings.items() if x != here]
        if conflicts:
            raise UserError(
                f"{', '.join(conflicts)}: training from given weights uses their network and preprocessing; remove "
                "these options, or train without --init"
            )


def save_trunk(
    run: Run, trunk: UNet, *, options: NetworkOptions, preprocessing: Preprocessing, details: Mapping[str, object]
) -> Path:
    """Write the trunk to the run folder."""
    card = {
        "format": FORMAT,
        "network": asdict(options),
        "preprocessing": preprocessing.to_json(),
        "details": dict(details),
    }
    return run.save_model(dict(trunk.state_dict()), card)


def load_trunk(model: str | Path) -> Trunk:
    """Load the trunk from the folder of a pre-training or of a segmenter.

    Raises:
        UserError: The folder contains no model, a damaged one, or one of another kind.
    """
    remedy = "give the run folder of `ssl-medseg pretrain` or `train`"
    tensors, card = load_model(model, formats=(FORMAT, SEGMENTER), remedy=remedy)
    if card["format"] == SEGMENTER:
        tensors = {name.removeprefix("trunk."): x for name, x in tensors.items() if name.startswith("trunk.")}
    with reading(
        model, "model.json does not describe a trunk", "the file was changed by hand, or a newer version wrote it"
    ):
        options = from_plain(NetworkOptions, card["network"], "network")
        preprocessing = from_plain(Preprocessing, card["preprocessing"], "preprocessing")
    return Trunk(tensors, opened_options(options, model=model), preprocessing, card["format"] == SEGMENTER)
