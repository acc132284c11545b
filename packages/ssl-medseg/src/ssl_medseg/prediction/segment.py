"""One volume, segmented: its slices through the network, and the answer on its own grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from ssl_medseg.preprocessing import Preprocessing, place, prepare, restore_slices
from ssl_medseg.volumes.volume import Volume


@dataclass(frozen=True)
class Segmented:
    """What the network says of a volume.

    Attributes:
        classes: uint8 ``[X, Y, Z]`` on the volume's own grid, 0 the background.
        probabilities: float32 ``[C, X, Y, Z]``, if they were asked for.
        notes: what was done beyond the settings or found odd, in plain words.
    """

    classes: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
    notes: tuple[str, ...]


_PIXELS_ON_CPU = 192 * 192


@torch.inference_mode()
def segment(
    volume: Volume,
    network: nn.Module,
    p: Preprocessing,
    *,
    batch_size: int = 16,
    probabilities: bool = False,
    keep_largest: bool = False,
) -> Segmented:
    """Segment a volume.

    Probabilities, not decisions, are brought back to the volume's grid, where the most probable class is taken. Beyond
    the volume itself memory is that of one batch of slices, unless all probabilities are asked for.

    Args:
        volume: any volume.
        network: slices ``[N, 1, H, W]`` to logits ``[N, C, H, W]``, in inference mode, on its device.
        p: the preprocessing it was trained with.
        batch_size: slices per forward pass at most. A CPU gets fewer: one of 192 x 192 pixels, nine of 64 x 64; more
            do not fit its caches and take up to twice as long.
        probabilities: give them too.
        keep_largest: of each structure keep the largest connected part; the rest becomes background. The probabilities
            stay as they are.

    Raises:
        UserError: the volume cannot be prepared.
    """
    prepared = prepare(volume, p)
    geometry, device = prepared.geometry, next(network.parameters()).device
    classes = np.empty((geometry.slices, *geometry.plane), dtype=np.uint8)
    kept = []
    count = _slices_at_once(batch_size, p, device)
    for start in range(0, geometry.slices, count):
        batch = prepared.slices[start : start + count].to(device).contiguous(memory_format=torch.channels_last)
        native = restore_slices(network(batch).float().softmax(dim=1), geometry)
        # Not argmax: over a middle axis on a CPU it takes twenty times as long.
        classes[start : start + count] = native.max(dim=1).indices.to(torch.uint8).cpu().numpy()
        if probabilities:
            kept.append(native.cpu().numpy())
    mask = place(classes, geometry)
    if keep_largest:
        mask = largest_parts(mask)
    if not probabilities:
        return Segmented(mask, None, prepared.notes)
    native_all = np.concatenate(kept)
    by_class = np.stack([place(native_all[:, number], geometry) for number in range(native_all.shape[1])])
    return Segmented(mask, by_class, prepared.notes)


def _slices_at_once(most: int, p: Preprocessing, device: torch.device) -> int:
    if device.type != "cpu":
        return most
    return max(1, min(most, _PIXELS_ON_CPU // (p.size[0] * p.size[1])))


def largest_parts(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask with the largest connected part of each structure alone; voxels connect through faces."""
    result = np.zeros_like(mask)
    for number in range(1, int(mask.max()) + 1):
        parts, count = ndimage.label(mask == number)
        if count:
            sizes = np.bincount(parts.ravel())
            result[parts == 1 + sizes[1:].argmax()] = number
    return result
