"""Save and load a trained network in the `model/` folder of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training import Run, check_model_code, load_model
from contrastive_core.training.config import from_plain
from contrastive_core.training.documents import reading
from contrastive_core.training.launch import choose_device
from contrastive_core.training.model_file import build_from
from contrastive_core.training.names import check_labels
from ssl_video.augment import ClipAugment
from ssl_video.data.clip import ClipSpec
from ssl_video.data.videos import Video, content_mark
from ssl_video.models import NetworkOptions, build_network
from ssl_video.models.networks import are_probabilities, logits_in, split_batchnorm, views_in_batch
from ssl_video.views import normalize

FORMAT = "ssl-video recognizer 2"


@dataclass(frozen=True)
class Recipe:
    """Description from which a recognizer and its inputs are built, without its weights.

    Attributes:
        network: Network.
        classes: Names of the classes in the order of the logits.
        clip: Frames of a clip.
        size: Side of the training crops in pixels.
        views: Views that it was trained on; the first is the one to test.
        flow: Flow method of the view ``flow``.
        tg_gain: Contrast of the view ``tg``.
    """

    network: NetworkOptions
    classes: tuple[str, ...]
    clip: ClipSpec
    size: int
    views: tuple[str, ...]
    flow: str = "dis"
    tg_gain: float = 1.0

    def build(self) -> nn.Module:
        """Build the network, randomly initialised, with batch norm statistics for each view."""
        return split_batchnorm(build_network(self.network, len(self.classes)), self.views)

    def augment(self) -> ClipAugment:
        """Return the augmentation that makes test pictures from clips."""
        return ClipAugment(self.size, views=self.views, flow=self.flow, tg_gain=self.tg_gain)


@dataclass(frozen=True)
class Recognizer:
    """A trained network on its device, in inference mode."""

    network: nn.Module
    recipe: Recipe
    device: torch.device
    card: Mapping[str, object]

    def learned_from(self, videos: Iterable[Video]) -> list[Video]:
        """Return those of these videos that the network was trained on, labelled or not.

        Videos are identified by content, whatever their name or folder.
        """
        entries = self.card.get("learned_from")
        seen = {mark for mark in entries if isinstance(mark, str)} if isinstance(entries, list) else set()
        return [video for video, mark in _marks(videos) if mark in seen]

    @torch.no_grad()
    def probabilities(self, pictures: Tensor, view: str) -> Tensor:
        """Compute probabilities for pictures of one view: ``[N, T, 3, H, W]`` -> float32 ``[N, K]`` on the CPU."""
        with views_in_batch(self.network, [(view, len(pictures))]):
            options = self.recipe.network
            logits = logits_in(self.network(normalize(pictures.to(self.device), mean=options.mean, std=options.std)))
        if logits is None or logits.shape != (len(pictures), len(self.recipe.classes)):
            description = "no logits" if logits is None else f"logits {list(logits.shape)}"
            raise UserError(
                f"network {options.name} returns {description}; expected [{len(pictures)}, {len(self.recipe.classes)}]"
            )
        if are_probabilities(logits):
            raise UserError(
                f"network {options.name} returns probabilities in evaluation mode; expected logits in both modes. "
                "Remove its last softmax"
            )
        # NaN stands for a view that a video lacks, which does not count; this video counts.
        probabilities = logits.float().softmax(dim=1).cpu()
        if not probabilities.isfinite().all():
            raise UserError(
                f"network {options.name} returns values that are not finite for the view {view}; expected finite logits"
            )
        return probabilities


def save_recognizer(
    run: Run,
    network: nn.Module,
    recipe: Recipe,
    *,
    learned_from: Iterable[Video],
    about: Mapping[str, object],
    folder: str = "model",
) -> Path:
    """Write a network, with batch norm split by views, to the run's folder.

    Args:
        run: Run to write to.
        network: Network built from `recipe`.
        recipe: Description of the network.
        learned_from: All training videos, so that testing on them can be refused.
        about: Other entries of the model card: split, method, steps.
        folder: Folder within the run.
    """
    marks = sorted({mark for _, mark in _marks(learned_from)})
    card = {"format": FORMAT, "recipe": asdict(recipe), **about, "learned_from": marks}
    return run.save_model(dict(network.state_dict()), card, folder=folder)


def load_recognizer(model: str | Path, *, device: str = "auto", network: str | None = None) -> Recognizer:
    """Open a run folder or a model folder.

    Args:
        model: Folder of the run or model.
        device: Device: auto, cpu, cuda or mps.
        network: ``package.module:function`` of a custom network, for a model that was trained with it; a model file
            alone never runs code.

    Raises:
        UserError: There is no model, it is damaged, or it is of another kind.
    """
    place = choose_device(device)
    tensors, card = load_model(model, formats=(FORMAT,), remedy="give the out folder of `ssl-video train`")
    with reading(
        model, "model.json does not describe a recognizer", "the file was changed by hand, or a newer version wrote it"
    ):
        recipe = from_plain(Recipe, card["recipe"], "recipe")
    check_labels(recipe.classes, what="class", source=model)
    if recipe.network.is_own and recipe.network.name != network:
        check_model_code(recipe.network.name, model=model)
    built = build_from(recipe.build, tensors, source=model)
    return Recognizer(built.eval().to(place), recipe, place, card)


def _marks(videos: Iterable[Video]) -> list[tuple[Video, str]]:
    """Return videos with the hash of their content; unreadable ones are left out."""

    def mark(video: Video) -> tuple[Video, str] | None:
        try:
            return video, content_mark(video.path)
        except UserError:
            return None

    with ThreadPoolExecutor() as pool:
        return [pair for pair in pool.map(mark, videos) if pair is not None]
