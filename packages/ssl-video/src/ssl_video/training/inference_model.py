"""Make the network for inference: a copy of the trained one with batch norm statistics for every view."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation
from ssl_video.augment import ClipAugment, WeakOptions
from ssl_video.data.clip import ClipSource
from ssl_video.models import build_network
from ssl_video.models.model_folder import Recipe
from ssl_video.models.networks import recalibrate_bn, split_batchnorm
from ssl_video.views import MEAN, STD, normalize


def make_tested(
    trained: nn.Module,
    recipe: Recipe,
    clips: ClipSource,
    *,
    weak: WeakOptions,
    count: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> nn.Module:
    """Copy the trained network, with batch norm statistics for every view; the original does not change.

    Args:
        trained: Network with joint or split batch norm.
        recipe: Description of the network from which it is built.
        clips: Videos that it was trained on.
        weak: Augmentation used in training.
        count: Number of clips to recalibrate on; 0: every view keeps the statistics from training.
        batch_size: Number of clips per forward pass; best about that of a view in training.
        seed: Seed for the choice of clips.
        device: Device of the copy.
    """
    state = trained.state_dict()
    network = build_network(recipe.network, len(recipe.classes))
    if state.keys() == network.state_dict().keys():
        network.load_state_dict(state)
        split_batchnorm(network, recipe.views)
    else:
        split_batchnorm(network, recipe.views).load_state_dict(state)
    network.to(device)
    if count:
        augment = ClipAugment(recipe.size, views=recipe.views, weak=weak, flow=recipe.flow, tg_gain=recipe.tg_gain)
        recalibrate_views(
            network, clips, augment, count=count, batch_size=batch_size, seed=seed, device=device,
            mean=recipe.network.mean, std=recipe.network.std,
        )  # fmt: skip
    return network.eval()


def recalibrate_views(
    network: nn.Module,
    clips: ClipSource,
    augment: ClipAugment,
    *,
    count: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    mean: Sequence[float] = (MEAN,),
    std: Sequence[float] = (STD,),
) -> None:
    """Recalibrate split batch norm: each view gets the statistics of `count` weakly augmented clips.

    Unreadable videos are skipped; a view without any readable clip keeps the statistics from training.
    """
    for view in augment.views:

        def batches(view: str = view) -> Iterator[Tensor]:
            one = ClipAugment(
                augment.size, views=(view,), weak=augment.weak_options, flow=augment.flow, tg_gain=augment.tg_gain
            )
            # Take every video once, then again with another clip, until there are enough.
            places = torch.arange(count) % len(clips)
            turns = torch.arange(count) // len(clips)
            order = permutation(derive(seed, "order"), len(clips))[places]
            for ids, passes in zip(torch.split(order, batch_size), torch.split(turns, batch_size), strict=True):
                samples, sample_ids = [], []
                for index, turn in zip(ids.tolist(), passes.tolist(), strict=True):
                    try:
                        clip = clips.clip(index, seed=derive(seed, "recalibrate", turn)).clip
                    except UserError:  # an unreadable file must not cost the trained network
                        continue
                    if view != "audio" or clip.has_audio is None or clip.has_audio.all():
                        samples.append(clip)
                        sample_ids.append(index + len(clips) * turn)
                if samples:
                    pictures = one.weak(samples, seed=seed, ids=torch.tensor(sample_ids))[view]
                    yield normalize(pictures.to(device), mean=mean, std=std)

        batch_iterator = batches()
        first = next(batch_iterator, None)
        if first is not None:
            recalibrate_bn(network, itertools.chain([first], batch_iterator), view=view)
