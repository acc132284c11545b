"""Read and write the optical flow of whole videos on disk.

A folder holds ``flow.json``, which states how the flow was computed, and one file per video. The file is named by the
hash of the video, so that outdated flow of a changed video is never used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training.config import allowed_bad, from_plain
from contrastive_core.training.documents import read_json, reading
from contrastive_core.training.files import write_atomic
from ssl_video.data.video_index import index_video
from ssl_video.data.videos import Video, VideoSet, digest_of
from ssl_video.optical_flow.methods import BOUND_SHARE

FORMAT = "ssl-video flow 1"
_LEVELS = 127


@dataclass(frozen=True)
class FlowSettings:
    """Settings that stored flow depends on.

    Attributes:
        method: Name of the method, see `optical_flow.methods.flow_method`.
        weights: SHA-256 of the weights of RAFT; empty for other methods.
        library: Library that computed it, with its version.
        short_side: Short side that larger frames were resized to; 0 for no resizing.
        precision: ``half`` for float16; ``byte`` for 255 steps between -b and b, b as in `flow_picture`.
    """

    method: str
    weights: str
    library: str
    short_side: int
    precision: Literal["half", "byte"]

    def encode(self, flow: Tensor) -> NDArray[Any]:
        """Convert displacements ``[..., 2, h, w]`` to the stored form; 0 stays exactly 0 in both precisions."""
        if self.precision == "half":
            return flow.cpu().to(torch.float16).numpy()
        bound = BOUND_SHARE * min(flow.shape[-2:])
        steps = (flow.cpu().clamp(-bound, bound) * (_LEVELS / bound)).round() + _LEVELS
        return steps.to(torch.uint8).numpy()

    def decode(self, stored: NDArray[Any]) -> Tensor:
        """Convert stored displacements to float32."""
        flow = torch.from_numpy(np.ascontiguousarray(stored)).to(torch.float32)
        if self.precision == "half":
            return flow
        return (flow - _LEVELS) * (BOUND_SHARE * min(flow.shape[-2:]) / _LEVELS)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored numbers."""
        return np.dtype(np.float16 if self.precision == "half" else np.uint8)


class FlowCache:
    """Flow of many videos in a folder.

    Args:
        folder: Folder of the cache.
        settings: Settings of its flow.
    """

    def __init__(self, folder: Path, settings: FlowSettings) -> None:
        self.folder, self.settings = folder, settings
        self._headers: dict[tuple[str, int, int], tuple[int, tuple[int, ...]]] = {}

    @classmethod
    def open(cls, folder: Path, *, method: str) -> FlowCache:
        """Open the cache of a folder.

        Args:
            folder: ``out`` of ``ssl-video flow``.
            method: Expected method, ``raft:FILE`` including its weights.

        Raises:
            UserError: There is no cache, or it holds flow from another method.
        """
        settings = read_settings(folder)
        if settings is None:
            raise UserError(f"{folder}: found no flow.json; expected a folder written by `ssl-video flow`")
        name, weights = identity(method)
        if (settings.method, settings.weights) != (name, weights):
            of = f"{settings.method} {settings.weights[:12]}".strip()
            raise UserError(
                f"{folder}: contains flow of {of}, expected {f'{name} {weights[:12]}'.strip()}; compute it into another"
                f" folder (ssl-video flow ... --method {method}), or use --flow {settings.method}"
            )
        return cls(folder, settings)

    def write_settings(self) -> None:
        """Write the settings into the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, **asdict(self.settings)}, indent=1)
        write_atomic(self.folder / "flow.json", f"{text}\n".encode())

    def file(self, path: str | Path) -> Path:
        """Return the path of the flow of a video, whether it exists or not.

        Raises:
            UserError: The video cannot be read.
        """
        digest = digest_of(path)
        return self.folder / digest[:2] / f"{digest}.npy"

    def require(self, videos: Iterable[VideoSet], *, max_bad: float = 0.0) -> None:
        """Check that all videos have stored flow, before training starts.

        Args:
            videos: Sets of videos.
            max_bad: Share of the videos of each set that may lack flow because they cannot be read.

        Raises:
            UserError: More videos lack flow.
        """
        for video_set in videos:
            with ThreadPoolExecutor() as pool:
                there = list(pool.map(self._has, video_set.videos))
            missing = [video for video, has in zip(video_set.videos, there, strict=True) if not has]
            if len(missing) > allowed_bad(max_bad, len(video_set)):
                raise UserError(
                    f"{self.folder}: {len(missing)} of the {len(video_set)} videos have no flow there "
                    f"({missing[0].key}); they are new, have changed, or cannot be read. Run `ssl-video flow` on this "
                    "folder again: it computes the missing flow and lists unreadable videos; see also --max-bad"
                )

    def _has(self, video: Video) -> bool:
        try:
            return self.file(video.path).is_file()
        except UserError:
            return False

    def read(self, path: str | Path, frames: list[int]) -> Tensor:
        """Read the displacements from these frames of a video to the frame after each, in pixels.

        Returns:
            float32 ``[T, 2, h, w]``.

        Raises:
            UserError: The flow of the video is missing, for instance because the video has changed, or is damaged.
        """
        file = self.file(path)
        try:
            with file.open("rb", buffering=0) as stream:
                state = os.fstat(stream.fileno())
                key = (str(file), state.st_mtime_ns, state.st_size)
                if key not in self._headers:
                    self._headers[key] = self._read_header(path, file)
                start, shape = self._headers[key]
                flows = np.empty((len(frames), *shape), self.settings.dtype)
                for flow, number in zip(flows, frames, strict=True):
                    stream.seek(start + number * flow.nbytes)
                    if stream.readinto(flow.data) != flow.nbytes:
                        raise UserError(f"{file}: ends before frame {number}; delete it and run `ssl-video flow` again")
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: its flow is not in {self.folder}; the video is new or has changed. Run `ssl-video flow` on "
                "this folder again"
            ) from error
        except OSError as error:
            raise UserError(f"{file}: cannot be read as flow ({error.strerror}); check its permissions") from error
        return self.settings.decode(flows)

    def _read_header(self, path: str | Path, file: Path) -> tuple[int, tuple[int, ...]]:
        """Check a file of flow, and return the position of its numbers and the shape of the flow of a frame."""
        with reading(file, "cannot be read as flow", "delete it and run `ssl-video flow` again"):
            values = np.load(file, mmap_mode="r", allow_pickle=False)
        count = max(1, len(index_video(path)) - 1)
        if values.dtype != self.settings.dtype or values.ndim != 4 or len(values) != count or values.shape[1] != 2:
            raise UserError(
                f"{file}: found {values.dtype} {values.shape}, expected {self.settings.dtype} ({count}, 2, h, w); "
                "delete it and run `ssl-video flow` again"
            )
        return values.offset, values.shape[1:]


def open_flow(
    folder: Path | None, *, method: str, views: Iterable[str], of: Iterable[VideoSet] = (), max_bad: float = 0.0
) -> FlowCache | None:
    """Open the cache that a command was given, if one of its views uses it, and check that it holds these videos.

    Raises:
        UserError: See `FlowCache.open` and `FlowCache.require`.
    """
    if folder is None or "flow" not in views:
        return None
    cache = FlowCache.open(folder, method=method)
    cache.require(of, max_bad=max_bad)
    return cache


def read_settings(folder: Path) -> FlowSettings | None:
    """Read the settings of the flow in a folder; None if there is none.

    Raises:
        UserError: ``flow.json`` exists but cannot be understood.
    """
    file = folder / "flow.json"
    if not file.is_file():
        return None
    content = read_json(file)
    with reading(file, f"does not describe stored flow of the format {FORMAT!r}", "compute the flow again"):
        if content.pop("format") != FORMAT:
            raise ValueError("it has another format")
        return from_plain(FlowSettings, content, "settings")


def identity(method: str) -> tuple[str, str]:
    """Return the name of a method, and the hash of its weights, if any.

    Raises:
        UserError: The file of weights cannot be read.
    """
    name, _, weights = method.partition(":")
    return name, digest_of(weights) if weights else ""
