"""Compute the optical flow of whole videos into a `FlowCache`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from contrastive_core.errors import UserError
from contrastive_core.training import prepare_worker
from contrastive_core.training.files import open_atomic
from contrastive_core.training.samplers import keep_item
from ssl_video.data.reader import every_frame, resize_short, short_size
from ssl_video.data.video_index import index_video
from ssl_video.data.videos import Video
from ssl_video.optical_flow.cache import FlowCache, FlowSettings, identity
from ssl_video.optical_flow.methods import flow_method

_PAIRS = 16  # pairs of frames per batch
_HEADER = 128  # bytes of an .npy file before its numbers


@dataclass(frozen=True)
class Work:
    """Flow of one video to compute.

    Attributes:
        video: Video.
        file: File of its flow.
        size: Size of that file in bytes.
    """

    video: Video
    file: Path
    size: int


class Done(NamedTuple):
    """Outcome for one video: a problem of this video, or an error that stops all, such as a full disk."""

    place: int
    problem: str | None
    fatal: str | None = None


def flow_settings(method: str, *, short_side: int, precision: Literal["half", "byte"]) -> FlowSettings:
    """Return the settings of `method` with the versions of the installed libraries.

    Raises:
        UserError: The method is unknown, or a library that it needs is not installed.
    """
    flow_method(method)
    name, weights = identity(method)
    if weights:
        return FlowSettings(name, weights, f"torchvision {version('torchvision')}", short_side, precision)
    import cv2  # noqa: PLC0415 - an extra, which exists if the method does

    return FlowSettings(name, weights, f"opencv {cv2.__version__}", short_side, precision)


def plan(cache: FlowCache, video: Video) -> Work:
    """Hash a video, count its frames, and compute the size of its flow on disk.

    Raises:
        UserError: The video cannot be opened.
    """
    index = index_video(video.path)
    height, width, short_side = index.height, index.width, cache.settings.short_side
    if _shrinks(height, width, short_side):
        height, width = short_size(height, width, short_side)
    numbers = max(1, len(index) - 1) * 2 * height * width
    return Work(video, cache.file(video.path), _HEADER + numbers * cache.settings.dtype.itemsize)


def store(cache: FlowCache, work: Work, *, method: str, device: torch.device) -> None:
    """Compute the flow of a video and write it atomically.

    Raises:
        UserError: The video cannot be read completely.
        OSError: The file cannot be written.
    """
    path = work.video.path
    count = max(1, len(index_video(path)) - 1)
    work.file.parent.mkdir(exist_ok=True)
    with open_atomic(work.file) as file:
        for number, flow in enumerate(_flows(path, cache.settings, method, device)):
            values = cache.settings.encode(flow)
            if not number:
                shape = (count, *values.shape[1:])
                descr = np.lib.format.dtype_to_descr(values.dtype)
                np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
            file.write(values.tobytes())


def store_all(
    cache: FlowCache, works: Sequence[Work], *, method: str, workers: int, device: torch.device
) -> Iterator[Done]:
    """Compute the flow of many videos; a video that cannot be read does not stop the others.

    Args:
        cache: Cache to write to.
        works: Videos.
        method: See `flow_method`.
        workers: Number of processes; 0: this one.
        device: Device of RAFT.
    """
    loader: DataLoader[Done] = DataLoader(
        _Works(cache, works, method, device),
        batch_size=None,  # an item is a video
        collate_fn=keep_item,
        num_workers=workers,
        prefetch_factor=1 if workers else None,
        in_order=False,
        worker_init_fn=prepare_worker,
        generator=torch.Generator().manual_seed(0),
    )
    yield from loader


class _Works(Dataset[Done]):
    def __init__(self, cache: FlowCache, works: Sequence[Work], method: str, device: torch.device) -> None:
        self.cache, self.works, self.method, self.device = cache, works, method, device

    def __len__(self) -> int:
        return len(self.works)

    def __getitem__(self, place: int) -> Done:
        work = self.works[place]
        try:
            store(self.cache, work, method=self.method, device=self.device)
        except UserError as error:
            return Done(place, str(error))
        except OSError as error:
            return Done(place, None, fatal=f"{work.file}: cannot be written ({error.strerror})")
        return Done(place, None)


def _flows(path: Path, settings: FlowSettings, method: str, device: torch.device) -> Iterator[Tensor]:
    """Yield the displacements of up to 16 successive pairs of frames, float32 ``[P, 2, h, w]``."""
    compute = flow_method(method)
    pairs = _pairs(_small_frames(path, settings.short_side))
    while chunk := list(itertools.islice(pairs, _PAIRS)):
        before, after = (torch.stack(frames).to(device) for frames in zip(*chunk, strict=True))
        yield compute(before, after)


def _pairs(frames: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each frame with the next one; the single frame of a video with itself."""
    before = first = next(frames)
    alone = True
    for after in frames:
        yield before, after
        before, alone = after, False
    if alone:
        yield first, first


def _small_frames(path: Path, short_side: int) -> Iterator[Tensor]:
    shape: tuple[int, ...] | None = None
    for picture in every_frame(path):
        if shape is not None and picture.shape != shape:
            raise UserError(f"{path}: its frames change from {shape[:2]} to {picture.shape[:2]}; expected one size")
        shape = picture.shape
        frame = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).contiguous()
        yield resize_short(frame, short_side) if _shrinks(shape[0], shape[1], short_side) else frame


def _shrinks(height: int, width: int, short_side: int) -> bool:
    return 0 < short_side < min(height, width)
