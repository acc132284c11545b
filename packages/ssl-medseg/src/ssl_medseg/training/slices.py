"""Stack the slices of prepared cases, sample them in every step, and augment them in batches.

Augmentation (affine maps, elastic deformation, intensity changes) processes a whole batch at once. The random
parameters of an image are a function of its id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation, uniform
from contrastive_core.synchronization import free_to_read
from contrastive_core.text import some_of
from contrastive_core.training import Run
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.preprocessing.cases import PreparedCase

__all__ = ["AugmentOptions", "change_intensity", "deform", "jitter_intensity"]


@dataclass(frozen=True)
class AugmentOptions:
    """Options of the augmentation; every slice is augmented independently.

    Attributes:
        kind: ``strong``, the kinds of augmentation of nnU-Net; ``paper``, those of the released code; or ``auto``, set
            by the recipe.
        affine: Apply affine maps. ``strong`` uses the options from `rotation` to `mirror`. ``paper`` applies one of
            five with equal probability: a rotation by up to 15 degrees, a zoom of 0.95 to 1.05, a left-right flip half
            of the time, a rotation by a multiple of 45 degrees, nothing.
        elastic: Standard deviation of the random displacements (on a 3 x 3 grid) that deform a slice, in pixels of a
            slice of 192 and scaled in proportion for other sizes; 5 in the paper; 0 disables the deformation.
        elastic_share: Fraction of the slices that are deformed. The released code deforms all slices after a random
            position in the batch of 20, 0.525 of them on average.
        intensity: Change intensities. ``strong`` uses the options from `gamma` to `smoothing`; ``paper`` changes
            brightness and contrast as for the contrastive loss, which the released code defines but does not use.
        rotation: Largest rotation angle in degrees, in either direction (``strong`` only, like all options below).
        scale: Largest factor by which a slice is enlarged or reduced.
        enlarge: Largest factor by which a slice is enlarged, in place of `scale`. By default `scale`; with a single
            labelled patient, whose structures have one size only, the factor at which they extend over 0.65 of the side
            of a slice, but at least `scale` and at most 2.
        shift: Largest shift along each axis, as a fraction of the side.
        turn: Fraction of the slices that are also rotated by a multiple of 90 degrees; by default 0.25 if the files do
            not state the orientation of the images, which may then differ between patients, and 0 if they do.
        mirror: Fraction of the slices that are flipped along each axis; by default 0.25, and 0 if names of structures
            state a side of the body (left kidney), because left and right look alike in mirror images.
        gamma: Largest exponent of the intensities; the smallest is its inverse.
        contrast: Largest contrast factor about the mean; the smallest is its inverse.
        brightness: Largest brightness change, added or subtracted.
        noise: Largest standard deviation of the Gaussian noise, which is added to 0.4 of the slices.
        smoothing: Fraction of the slices that are blurred.
    """

    kind: Literal["auto", "strong", "paper"] = "auto"
    affine: bool = True
    elastic: float = 5.0
    elastic_share: float = 0.525
    intensity: bool = True
    rotation: float = 30.0
    scale: float = 1.33
    enlarge: float | None = None
    shift: float = 0.1
    turn: float | None = None
    mirror: float | None = None
    gamma: float = 1.6
    contrast: float = 1.5
    brightness: float = 0.2
    noise: float = 0.08
    smoothing: float = 0.4

    def __post_init__(self) -> None:
        for name in ("elastic_share", "turn", "mirror", "smoothing"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise UserError(f"augment.{name} is {getattr(self, name)}; expected a fraction between 0 and 1")
        for name in ("elastic", "rotation", "shift", "brightness", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"augment.{name} is {getattr(self, name)}; expected a number of at least 0")
        for name in ("scale", "enlarge", "gamma", "contrast"):
            if not 1 <= (1 if getattr(self, name) is None else getattr(self, name)) < math.inf:
                raise UserError(f"augment.{name} is {getattr(self, name)}; expected a factor of at least 1")

    def for_data(self, labels: LabelMap, labelled: Sequence[PreparedCase], *, oriented: bool) -> AugmentOptions:
        """Return the options with values of `turn`, `mirror` and `enlarge` that suit the data, unless they are given.

        Args:
            labels: Label map.
            labelled: Labelled cases.
            oriented: Whether all images are brought to the same orientation.
        """
        turn, mirror, enlarge = self.turn, self.mirror, self.enlarge
        if turn is None:
            turn = 0.0 if oriented else _TURNED
        if mirror is None:
            mirror = 0.0 if labels.sided else _MIRROR
        if enlarge is None:
            enlarge = self.scale
            if len({case.patient for case in labelled}) == 1:
                enlarge = max(enlarge, min(_LARGEST, _EXTENT / max(_extent(labelled), 1e-3)))
        return replace(self, turn=turn, mirror=mirror, enlarge=enlarge)


def _extent(labelled: Sequence[PreparedCase]) -> float:
    """Return the largest extent, as a fraction of the side of a slice, of all structures that a slice contains."""
    extents = [0.0]
    for label in [case.label for case in labelled if case.label is not None]:
        for along in (1, 2):
            for line in (label > 0).any(along):
                places = line.nonzero()
                if len(places):
                    extents.append((int(places.max() - places.min()) + 1) / len(line))
    return max(extents)


_LARGEST, _EXTENT = 2.0, 0.65
"""Largest factor of enlargement with a single labelled patient, and extent that enlarged structures may reach."""
_MIRROR = 0.25
_TURNED = 0.25
_KNOTS = 3
_FULL_SIZE = 192
_NOISY = 0.4
_CHANNEL = 1 << 50
"""Offset between the ids of two channels of an image."""
_REACH = 4
_AFFINE_DRAWS, _ELASTIC_DRAWS = 2, 1 + 2 * _KNOTS**2
_ROTATE, _ZOOM, _FLIP, _TURN, _CHOICES = range(5)


@torch.no_grad()
def deform(
    images: Tensor, classes: Tensor, *, num_classes: int, seed: int, ids: Tensor, options: AugmentOptions
) -> tuple[Tensor, Tensor]:
    """Apply spatial augmentation to images and their labels.

    The affine map of :class:`AugmentOptions` about the centre is followed by the elastic deformation, as in the
    released code, but both are applied in a single bilinear interpolation, which blurs less. Labels are interpolated as
    class shares (soft labels), so that a pixel on a boundary belongs partly to either class. Pixels from outside the
    image are 0 and background.

    Args:
        images: float [N, K, H, W]; the K channels of an image get the same map.
        classes: Integers [N, H, W].
        num_classes: Number of classes C, background included.
        seed: Random seed; use a different one for every step and view.
        ids: int64 [N]; the random parameters of an image are a function of (seed, id).
        options: Options of the augmentation.

    Returns:
        Images [N, K, H, W] and class shares [N, C, H, W], which sum to 1.

    Time and memory: as one ``grid_sample`` of K + C - 1 channels.
    """
    places = sampling_places(
        images.shape[-2:], seed=seed, ids=ids.to(images.device, non_blocking=True), options=options
    )
    structures = torch.arange(1, num_classes, device=images.device)[:, None, None]
    layers = torch.cat([images, (classes[:, None] == structures).to(images.dtype)], 1)
    warp = F.grid_sample(layers, places.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=False)
    count = images.shape[1]
    foreground = warp[:, count:]
    background = (1 - foreground.sum(1, keepdim=True)).clamp(min=0)
    return warp[:, :count], torch.cat([background, foreground], 1)


def sampling_places(size: torch.Size, *, seed: int, ids: Tensor, options: AugmentOptions) -> Tensor:
    """Return the sampling grid of ``grid_sample``: the source (x, y) of each pixel, float32 [N, H, W, 2]."""
    height, width = size
    draws = uniform(seed, ids, _AFFINE_DRAWS + _ELASTIC_DRAWS)
    half = torch.tensor([width / 2, height / 2]).to(ids.device, non_blocking=True)
    # In pixels relative to the centre, so that rotations preserve angles on slices that are not square.
    places = _pixels(height, width).to(ids.device, non_blocking=True).expand(len(ids), -1, -1, -1)
    if options.elastic > 0:
        places = places + _bending(draws[:, _AFFINE_DRAWS:], height, width, options)
    if options.affine and options.kind == "strong":
        maps, shifts = _strong_affine(uniform(derive(seed, "affine"), ids, 8), options)
        places = torch.einsum("nhwi,nji->nhwj", places, maps) + (2 * half * shifts)[:, None, None]
    elif options.affine:
        places = torch.einsum("nhwi,nji->nhwj", places, _affine(draws))
    return places / half


def _affine(draws: Tensor) -> Tensor:
    """Return matrices [N, 2, 2] that map pixels of the result to pixels of the image, relative to the centre."""
    choice = (draws[:, 0] * (_CHOICES + 1)).long()
    amount = draws[:, 1]
    angle = torch.where(choice == _ROTATE, math.radians(30) * (amount - 0.5), 0.0)
    angle = torch.where(choice == _TURN, math.pi / 4 * (8 * amount).floor(), angle)
    scale = torch.where(choice == _ZOOM, 1 / (0.95 + 0.1 * amount), 1.0)
    flip = torch.where((choice == _FLIP) & (amount < 0.5), -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    return torch.stack([torch.stack([cos * flip, -sin], 1), torch.stack([sin * flip, cos], 1)], 1)


def _strong_affine(draws: Tensor, options: AugmentOptions) -> tuple[Tensor, Tensor]:
    """Return matrices [N, 2, 2] as in `_affine`, and shifts [N, 2] as fractions of the sides."""
    spread = 2 * draws - 1
    angle = math.radians(options.rotation) * spread[:, 0]
    turn = _TURNED if options.turn is None else options.turn
    angle = angle + torch.where(draws[:, 6] < turn, math.pi / 2 * (4 * draws[:, 7]).floor(), 0.0)
    largest = torch.where(spread[:, 1] > 0, math.log(options.enlarge or options.scale), math.log(options.scale))
    scale = torch.exp(largest * spread[:, 1])
    mirror = _MIRROR if options.mirror is None else options.mirror
    flip_x, flip_y = (torch.where(draws[:, i] < mirror, -1.0, 1.0) for i in (4, 5))
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = torch.stack([cos * flip_x, -sin * flip_y], 1), torch.stack([sin * flip_x, cos * flip_y], 1)
    return torch.stack(rows, 1), options.shift * spread[:, 2:4]


def _normal(draws: Tensor) -> Tensor:
    """Convert uniform numbers of 24 bits, which may be 0, to standard normal ones."""
    # 2u - 1 + 2^-24 is exact in float32 and lies strictly between -1 and 1, where the quantile is finite.
    return math.sqrt(2) * torch.erfinv((2 * draws - 1) + 2**-24)


def _bending(draws: Tensor, height: int, width: int, options: AugmentOptions) -> Tensor:
    """Return displacements [N, H, W, 2] in pixels: normally distributed at 3 x 3 knots, bicubic in between."""
    knots = _normal(draws[:, 1:]).view(-1, 2, _KNOTS, _KNOTS) * (options.elastic * max(height, width) / _FULL_SIZE)
    knots = knots * (draws[:, :1] < options.elastic_share)[..., None, None]
    rows, columns = (_bicubic(size).to(draws.device, non_blocking=True) for size in (height, width))
    return (rows @ knots @ columns.T).permute(0, 2, 3, 1)


@cache
def _pixels(height: int, width: int) -> Tensor:
    """Return the pixel centres (x, y) relative to the centre of the image, [H, W, 2]."""
    y, x = (torch.arange(n) - (n - 1) / 2 for n in (height, width))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


@cache
def _bicubic(size: int) -> Tensor:
    """Return the interpolation weights [size, 3] of the knots along an axis."""
    knots = torch.eye(_KNOTS)[None, :, :, None]
    return F.interpolate(knots, size=(size, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T.contiguous()


@torch.no_grad()
def jitter_intensity(
    images: Tensor, *, seed: int, ids: Tensor, brightness: float = 0.3, contrast: float = 0.3, largest: float = 1.5
) -> Tensor:
    """Change brightness, then contrast about the mean of the image, then clip to [0, largest].

        x <- x + b,   x <- (x - mean x) c + mean x,   b ~ U(-brightness, brightness),  c ~ U(1 - contrast, 1 + contrast)

    Pixels are not moved, so that labels remain valid. The released code draws one b and one c per batch; here, each
    channel of each image has its own.

    Args:
        images: float [N, K, H, W], about 0 to 1.
        seed: Random seed; use a different one for every step and view.
        ids: int64 [N]; the random parameters of an image are a function of (seed, id).
        brightness: Largest change of brightness; 0.3 in the released code.
        contrast: Largest change of the contrast factor; 0.3 in the released code.
        largest: Upper clipping value.
    """
    shape = images.shape
    images, ids = _each_channel(images, ids)
    draws = uniform(seed, ids, 2).to(images.dtype)[..., None, None, None]
    shift, factor = brightness * (2 * draws[:, 0] - 1), 1 + contrast * (2 * draws[:, 1] - 1)
    shifted = images + shift
    mean = shifted.mean((1, 2, 3), keepdim=True)
    return ((shifted - mean) * factor + mean).clamp(0, largest).view(shape)


def _each_channel(images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Split channels into separate images [N K, 1, H, W] with separate ids; the first channel keeps the image's id.

    Intensities of T2 and ADC vary independently between scanners, so each channel has its own random parameters.
    """
    count, channels = images.shape[:2]
    ids = ids.to(images.device, non_blocking=True)
    own = ids[:, None] + _CHANNEL * torch.arange(channels, device=images.device)
    return images.reshape(count * channels, 1, *images.shape[2:]), own.flatten()


@torch.no_grad()
def change_intensity(images: Tensor, *, seed: int, ids: Tensor, options: AugmentOptions) -> Tensor:
    """Apply intensity augmentation to slices; pixels are not moved, so that labels remain valid.

    `paper` uses :func:`jitter_intensity`. `strong` applies, in this order and independently for each channel: gamma
    ``x <- max(x, 0)^g``; contrast about the mean and brightness (0.8 of the images); a blend with a copy blurred by 1.5
    pixels; Gaussian noise.

    Args:
        images: float [N, K, H, W], about 0 to 1.
        seed: Random seed; use a different one for every step and view.
        ids: int64 [N]; the random parameters of an image are a function of (seed, id).
        options: Options of the augmentation.
    """
    if options.kind != "strong":
        return jitter_intensity(images, seed=seed, ids=ids)
    shape = images.shape
    images, ids = _each_channel(images, ids)
    draws = uniform(seed, ids, 8).to(images.dtype)[..., None, None, None]
    spread = 2 * draws - 1
    changed = (draws[:, 3] < 0.8).to(images.dtype)
    images = images.clamp_min(1e-4).pow(torch.exp(math.log(options.gamma) * spread[:, 0]))
    mean = images.mean((1, 2, 3), keepdim=True)
    factor = torch.exp(math.log(options.contrast) * spread[:, 1] * changed)
    images = torch.addcmul(mean * (1 - factor) + options.brightness * spread[:, 2] * changed, images, factor)
    if options.smoothing:
        share = draws[:, 4] * (draws[:, 5] < options.smoothing)
        images = torch.lerp(images, _blurred(images), share)
    if options.noise:
        sigma = options.noise * draws[:, 6] * (draws[:, 7] < _NOISY)
        height, width = images.shape[-2:]
        if free_to_read(sigma):  # draw noise only where it is added
            noisy = torch.nonzero(sigma.flatten()).flatten()
        else:
            noisy = torch.arange(len(ids), device=ids.device)
        normal = _normal(uniform(derive(seed, "noise"), ids[noisy], height * width)).to(images.dtype)
        images[noisy] += normal.view(-1, 1, height, width) * sigma[noisy]
    return images.view(shape)


def _blurred(images: Tensor) -> Tensor:
    """Smooth images [N, 1, H, W] by a Gaussian of 1.5 pixels."""
    offsets = torch.arange(-_REACH, _REACH + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-offsets.square() / (2 * 1.5**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(images, (_REACH, _REACH, _REACH, _REACH), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


_STREAM = 1 << 40
"""Offset between the ids of two sampling streams."""


@dataclass(frozen=True)
class SliceSet:
    """All slices of some cases, in order.

    Attributes:
        images: float32 [N, K, H, W] with K channels.
        labels: uint8 [N, H, W], true labels or pseudo-labels; None if there are none.
        case: int64 [N], index of the case of each slice.
        number: int64 [N], index of each slice within its case.
        names: Names of the cases.
    """

    images: Tensor
    labels: Tensor | None
    case: Tensor
    number: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of slices."""
        return len(self.images)

    @property
    def truth(self) -> Tensor:
        """The labels, for callers that need them.

        Raises:
            UserError: The slices have no labels.
        """
        if self.labels is None:
            raise UserError(f"found no labels for {some_of(self.names)}; expected one for every slice")
        return self.labels

    def with_labels(self, labels: Tensor) -> SliceSet:
        """Return the same slices with other labels, uint8 [N, H, W], such as pseudo-labels."""
        return replace(self, labels=labels)

    def presence(self, classes: int) -> Tensor:
        """Return whether each slice contains each class, background included; bool [N, C]."""
        flat = self.truth.flatten(1)
        return torch.stack([(flat == number).any(1) for number in range(classes)], 1)

    def partition(self, parts: int) -> Tensor:
        """Divide each volume into equal parts along the slice axis; return the part of each slice, int64 [N]."""
        counts = torch.bincount(self.case, minlength=len(self.names))
        return self.number * parts // counts[self.case]

    def to(self, device: torch.device) -> SliceSet:
        """Return a copy on a device; a few hundred slices fit in memory next to the network."""
        labels = None if self.labels is None else self.labels.to(device)
        return SliceSet(self.images.to(device), labels, self.case.to(device), self.number.to(device), self.names)


def stack_slices(cases: Sequence[PreparedCase]) -> SliceSet:
    """Stack the slices of cases of the same size, with labels if all cases have them.

    Raises:
        UserError: There are no cases.
    """
    if not cases:
        raise UserError("found no cases to train on; expected at least one")
    counts = [len(case.slices) for case in cases]
    labels = [case.label for case in cases if case.label is not None]
    return SliceSet(
        torch.cat([case.slices for case in cases]),
        torch.cat(labels) if len(labels) == len(cases) else None,
        torch.arange(len(cases)).repeat_interleave(torch.tensor(counts)),
        torch.cat([torch.arange(count) for count in counts]),
        tuple(case.name for case in cases),
    )


def slices_with(slices: SliceSet, *, classes: int, least: int = 1) -> Tensor:
    """Select the slices with at least `least` classes, background included; int64 [M].

    The papers use the following rules: in self-training, segmentation batches contain slices with at least 3 classes of
    ACDC and MM-WHS and 2 of the prostate; contrastive batches contain slices with all classes.

    Raises:
        UserError: No slice has that many classes.
    """
    counts = slices.presence(classes).sum(1)
    indices = torch.nonzero(counts >= least).flatten()
    if not len(indices):
        raise UserError(
            f"none of the {len(slices)} slices contains {least} classes or more; the maximum is {int(counts.max())}. "
            "Lower the number of classes that a slice must contain (--least-classes)"
        )
    return indices


class Drawn(NamedTuple):
    """The slices of one process in one step."""

    samples: Tensor
    """int64 [n]: indices of the slices."""
    ids: Tensor
    """int64 [n], unique within the step: a slice that is drawn twice is augmented in two different ways."""


class SliceDraws:
    """Sampler of slices; its draws depend on seed and step only, not on earlier draws or the number of processes.

    The pool is traversed in one random order after the other, without gaps. Every slice is therefore drawn equally
    often, and a pool smaller than a batch is drawn several times within it. Each process takes a consecutive part of
    the batch.

    Args:
        pool: int64 [M], indices of the slices to draw from.
        batch_size: Slices per step, over all processes; a multiple of `world_size`.
        seed: Seed of the orders.
        rank: Rank of this process, 0 <= rank < world_size.
        world_size: Number of processes.

    Raises:
        UserError: The pool is empty, the batch is empty, or it cannot be divided evenly among the processes.

    >>> draws = SliceDraws(torch.tensor([3, 5, 8]), batch_size=2, seed=0)
    >>> [draws.at(step).samples.tolist() for step in range(3)]
    [[3, 8], [5, 5], [3, 8]]
    """

    def __init__(self, pool: Tensor, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"batch_size is {batch_size} on {world_size} process(es); expected at least 1, and a multiple of the "
                "number of processes"
            )
        if not len(pool):
            raise UserError("found no slices to draw; expected at least one")
        self.pool, self.batch_size = pool, batch_size
        self._seed, self._rank, self._own = seed, rank, batch_size // world_size

    def at(self, step: int) -> Drawn:
        """Return the slices of this process in `step`."""
        places = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        rounds = places // len(self.pool)
        orders = [
            permutation(derive(self._seed, "order", number), len(self.pool))
            for number in range(int(rounds[0]), int(rounds[-1]) + 1)
        ]
        order = torch.stack(orders)[rounds - rounds[0], places % len(self.pool)]
        index = self.pool[order]
        own = slice(self._rank * self._own, (self._rank + 1) * self._own)
        return Drawn(index[own], (index + (int(self.pool.max()) + 1) * (rounds - rounds[0]))[own])


class SegmentationBatch(NamedTuple):
    """Input of the segmentation loss in a step."""

    images: Tensor
    """float32 [n, K, H, W]."""
    shares: Tensor
    """Class shares (soft labels) [n, C, H, W], augmented with the images."""


class SegmentationBatches:
    """Batches of labelled slices, each augmented independently.

    Args:
        run: Run that provides seed, device and processes.
        slices: Labelled slices; they are moved to the device.
        classes: Number of classes C, background included.
        pool: int64 [M], indices of the slices to draw from.
        batch_size: Slices per step, over all processes.
        augment: Options of the augmentation.
        purpose: Name of the random stream; batches with different purposes are drawn independently.
        rare_share: Fraction of the batch that is drawn from the slices of `pool` with the rarest structure; the rest is
            drawn from the whole pool.
    """

    def __init__(
        self,
        run: Run,
        slices: SliceSet,
        *,
        classes: int,
        pool: Tensor,
        batch_size: int,
        augment: AugmentOptions,
        purpose: str = "labelled",
        rare_share: float = 0.0,
    ) -> None:
        self._slices, self._classes, self._augment = slices.to(run.device), classes, augment
        processes = {"rank": run.rank, "world_size": run.world_size}
        rare = run.world_size * round(rare_share * batch_size / run.world_size)
        self._draws = []
        if rare:
            presence = slices.presence(classes)[pool][:, 1:]
            candidates = pool[presence[:, _rarest(presence)]]
            self._draws.append(SliceDraws(candidates, batch_size=rare, seed=run.seed(purpose, "rare"), **processes))
        if rare < batch_size or not rare:
            self._draws.append(SliceDraws(pool, batch_size=batch_size - rare, seed=run.seed(purpose), **processes))
        self._seed = run.seed(purpose, "augment")

    def at(self, step: int) -> SegmentationBatch:
        """Return the batch of this process in `step`."""
        batch = _joined([draws.at(step) for draws in self._draws])
        index = batch.samples.to(self._slices.images.device, non_blocking=True)
        images, shares = deform(
            self._slices.images[index], self._slices.truth[index], num_classes=self._classes,
            seed=derive(self._seed, step, "places"), ids=batch.ids, options=self._augment,
        )  # fmt: skip
        if self._augment.intensity:
            images = change_intensity(
                images, seed=derive(self._seed, step, "intensity"), ids=batch.ids, options=self._augment
            )
        return SegmentationBatch(images.contiguous(memory_format=torch.channels_last), shares)


def _rarest(presence: Tensor) -> int:
    """Return the structure that occurs in the fewest slices, but at least in one, given bool [M, F]."""
    counts = presence.sum(0)
    return int(torch.where(counts > 0, counts, len(presence) + 1).argmin())


def _joined(parts: Sequence[Drawn]) -> Drawn:
    """Concatenate the draws of several streams; the ids of different streams remain distinct."""
    ids = [part.ids + number * _STREAM for number, part in enumerate(parts)]
    return Drawn(torch.cat([part.samples for part in parts]), torch.cat(ids))
