"""The `model/` folder of a pre-training: a trunk that `train` can begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training import Run, load_model
from ssl_medseg.model_folder import FORMAT as SEGMENTER
from ssl_medseg.models import NetworkOptions, UNet
from ssl_medseg.preprocessing import Preprocessing

FORMAT = "ssl-medseg trunk 1"


@dataclass(frozen=True)
class Trunk:
    """Weights of a trunk, how it is built, and what is done to a volume before it."""

    weights: dict[str, Tensor]
    options: NetworkOptions
    preprocessing: Preprocessing


def save_trunk(
    run: Run, trunk: UNet, *, options: NetworkOptions, preprocessing: Preprocessing, details: Mapping[str, object]
) -> Path:
    """Write the trunk to the run's folder."""
    card = {
        "format": FORMAT,
        "network": asdict(options),
        "preprocessing": preprocessing.to_json(),
        "details": dict(details),
    }
    return run.save_model(dict(trunk.state_dict()), card)


def load_trunk(model: str | Path) -> Trunk:
    """The trunk in the folder of a pre-training, or of a segmenter.

    Raises:
        UserError: no model there, a damaged one, or one of another kind.
    """
    tensors, card = load_model(model)
    if card.get("format") not in (FORMAT, SEGMENTER):
        raise UserError(
            f"{model}: found a model of format {card.get('format')!r}, expected {FORMAT!r} or {SEGMENTER!r}; point at "
            "the out folder of `ssl-medseg pretrain` or `train`"
        )
    if card["format"] == SEGMENTER:
        tensors = {name.removeprefix("trunk."): x for name, x in tensors.items() if name.startswith("trunk.")}
    try:
        return Trunk(tensors, NetworkOptions(**card["network"]), Preprocessing.from_json(card["preprocessing"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{model}: model.json does not describe a trunk ({error}); it was changed by hand") from error
