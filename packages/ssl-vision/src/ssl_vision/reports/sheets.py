"""Image sheets: the views that training draws, and nearest neighbours under the trained encoder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.rng import derive, permutation
from ssl_vision.data import ImageSet, Subset
from ssl_vision.evaluation.features import extract
from ssl_vision.models.model_folder import LoadedModel
from ssl_vision.reports.run_folder import RunSettings
from ssl_vision.training.loading import view_seed
from ssl_vision.training.options import build_augment

_LOOKED_THROUGH = 5000


@dataclass(frozen=True)
class Picture:
    """An image with its description; pixels uint8 or [0, 1] float ``[3, H, W]``.

    An image with one channel is shown in grey; of other numbers of channels, the first three are shown in false
    colours, stretched between their 2nd and 98th percentile.
    """

    pixels: Tensor
    path: str
    label: str | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", displayable(self.pixels))


@dataclass(frozen=True)
class ViewRow:
    """An image and its pair of views in every epoch of the sheet."""

    original: Picture
    pairs: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class NeighbourRow:
    """A query and the most similar images with their cosine similarities, most similar first."""

    query: Picture
    nearest: list[tuple[Picture, float]]


@dataclass(frozen=True)
class Sheets:
    """Both sheets of a run: `epochs`, from 0, of the views, and `bank`, the number of images searched for neighbours.

    Without a trained model there are no neighbours.
    """

    views: list[ViewRow]
    epochs: list[int]
    neighbours: list[NeighbourRow] | None
    bank: int


def make_sheets(
    settings: RunSettings,
    images: ImageSet,
    model: LoadedModel | None,
    *,
    rows: int,
    bank: int,
    seed: int,
    without: Collection[int] = (),
) -> Sheets:
    """Draw views of random images in the first two epochs and the last, and find neighbours of random images.

    Args:
        settings: Settings of the run, for the views.
        images: Images to choose from.
        model: Model whose features are compared.
        rows: Number of images on each sheet.
        bank: Largest number of images to search for neighbours.
        seed: Seed for the choices.
        without: Unreadable images to leave out.
    """
    epochs = sorted({0, 1, settings.epochs - 1} & set(range(settings.epochs)))
    views = draw_views(images, settings, choose_images(images, rows, seed=seed, without=without), epochs)
    if model is None:
        return Sheets(views, epochs, None, 0)
    bank_images = choose_bank(images, bank, seed=seed, without=without)
    neighbours = find_neighbours(model, bank_images, choose_images(bank_images, rows, seed=seed))
    return Sheets(views, epochs, neighbours, len(bank_images))


def draw_views(images: ImageSet, settings: RunSettings, indices: Sequence[int], epochs: Sequence[int]) -> list[ViewRow]:
    """Draw the views of these images in these epochs, from 0: the same pixels as in training."""
    augment = build_augment(settings.augment, settings.image_size)
    seed = derive(settings.seed, "views")  # as in `pretrain`
    rows = []
    for index in indices:
        picture = images.read(index)
        pairs = []
        for epoch in epochs:
            view_a, view_b = (
                augment(picture[None], seed=view_seed(seed, epoch, view), ids=torch.tensor([index]))[0]
                for view in (0, 1)
            )
            pairs.append((displayable(view_a), displayable(view_b)))
        rows.append(ViewRow(Picture(picture, images.path(index), _class_name(images, index)), pairs))
    return rows


def find_neighbours(
    model: LoadedModel, images: ImageSet, queries: Sequence[int], *, count: int = 5, batch_size: int = 512
) -> list[NeighbourRow]:
    """Find the `count` most similar other images of the set for every query, under the model."""
    similarity, index = nearest(extract(model, images, batch_size=batch_size).cpu(), torch.tensor(queries), count)
    return [
        NeighbourRow(
            _picture(images, query),
            [(_picture(images, int(j)), float(s)) for j, s in zip(neighbours, similar, strict=True)],
        )
        for query, neighbours, similar in zip(queries, index, similarity, strict=True)
    ]


def nearest(features: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return cosine similarity and index, each ``[Q, count]``, of the other rows most similar to rows `queries`.

    Ties are in the order of the rows; with fewer than ``count + 1`` rows, all others are returned.
    """
    unit = F.normalize(features.float(), dim=1)
    similarity = unit[queries] @ unit.T
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    ranked = similarity.sort(dim=1, descending=True, stable=True)
    count = min(count, len(features) - 1)
    return ranked.values[:, :count].clamp(-1, 1), ranked.indices[:, :count]


def choose_images(images: ImageSet, count: int, *, seed: int, without: Collection[int] = ()) -> list[int]:
    """Choose random images of as many different classes as possible, without those in `without`."""
    order = permutation(derive(seed, "show"), len(images))[:_LOOKED_THROUGH].tolist()
    rank = dict.fromkeys(range(-1, len(images.classes)), 0)
    turns = []
    for position, index in enumerate(i for i in order if i not in without):
        label = images.label(index)
        label = -1 if label is None else label
        turns.append((rank[label], position, index))
        rank[label] += 1
    return [index for _, _, index in sorted(turns)[:count]]


def choose_bank(images: ImageSet, count: int, *, seed: int, without: Collection[int] = ()) -> Subset:
    """Choose at most `count` random images of a set, in its order, without those in `without`."""
    order = permutation(derive(seed, "bank"), len(images)).tolist()
    return Subset(images, sorted([i for i in order if i not in without][:count]))


def _class_name(images: ImageSet, index: int) -> str | None:
    label = images.label(index)
    return None if label is None else images.classes[label]


def _picture(images: ImageSet, index: int) -> Picture:
    return Picture(images.read(index), images.path(index), _class_name(images, index))


def displayable(pixels: Tensor) -> Tensor:
    """Convert an image ``[C, H, W]`` to three channels for display; see `Picture`."""
    if len(pixels) == 3:
        return pixels
    channels = pixels[:3] if len(pixels) > 3 else pixels[:1]
    flat = channels.flatten(1)
    low, high = torch.quantile(flat, torch.tensor([0.02, 0.98]), dim=1)[..., None, None]
    stretched: Tensor = ((channels - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return stretched if len(stretched) == 3 else stretched.expand(3, -1, -1)
