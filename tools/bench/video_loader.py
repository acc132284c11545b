"""Measure the clips per second that ssl-video reads, compared with PyTorchVideo and plain PyAV.

    python -m tools.bench.video_loader --videos data/ucf101_10/train --out docs/results/video_speed.json

A clip has 8 frames at intervals of 8 frames at 30 frames per second, and starts at a random time. Plain PyAV opens a
file, seeks, decodes the window and converts these 8 frames, without any further checks. PyTorchVideo's
`labeled_video_dataset` converts the whole window, from which 8 frames are then selected as in its tutorials. Everything
runs in one process and one thread. Readers alternate, the first round is not counted, and medians over rounds are
printed with ratios, which are also valid on a busy machine. `240x320` is a generated h264 file of 10 seconds with key
frames 12 or 250 frames apart.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from ssl_video.data import ClipDataset, ClipSpec, VideoSet, open_videos
from ssl_video.data.videos import Video
from tools.results import provenance, write_result

SPEC = ClipSpec()
OURS, MOTION, BARE, PEER = "ssl-video", "ssl-video, with the next frames", "bare PyAV", "PyTorchVideo"
Contestant = Callable[[int], object]
"""Function from a number to the clip of one video."""


def generated(folder: Path, seconds: int) -> dict[str, VideoSet]:
    """Write a moving texture of 240 x 320 pixels as h264 files with frequent and with rare key frames."""
    texture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    sets = {}
    for apart in (12, 250):
        path = folder / f"{apart}.mp4"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=30, options={"g": str(apart)})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for number in range(30 * seconds):
                picture = np.ascontiguousarray(np.roll(texture, 2 * number, axis=1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        sets[f"240x320, key frames {apart} apart"] = VideoSet(str(path), [Video(path.name, path, "one", None)])
    return sets


def ours(videos: VideoSet, *, following: bool) -> Contestant:
    """Return a function that reads clips as `ssl-video train` does."""
    data = ClipDataset(videos, SPEC, following=following)
    return lambda number: data.clip(number % len(data), seed=number).clip.frames


def bare(videos: VideoSet) -> Contestant:
    """Return a function that opens a file, seeks, decodes, and converts 8 frames with PyAV."""

    def read(number: int) -> object:
        with av.open(str(videos[number % len(videos)].path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            base = float(stream.time_base or 1)
            room = max(0.0, (stream.duration or 0) * base - SPEC.duration)
            start = room * np.random.default_rng(number).random()
            container.seek(int(start / base), stream=stream)
            moments = SPEC.times(start)
            pictures: list[Any] = []
            for frame in container.decode(stream):
                if (frame.time or 0) >= moments[len(pictures)] - 1e-3:
                    pictures.append(frame.reformat(format="rgb24", threads=1).to_ndarray())
                    if len(pictures) == len(moments):
                        break
            return torch.from_numpy(np.stack(pictures))

    return read


def peer(videos: VideoSet, scratch: Path) -> Contestant:
    """Return a function that reads random clips with PyTorchVideo's `labeled_video_dataset`."""
    from pytorchvideo.data import labeled_video_dataset, make_clip_sampler

    table = scratch / "paths.txt"
    table.write_text("".join(f"{video.path.resolve()} 0\n" for video in videos.videos))
    frames = torch.arange(SPEC.frames)

    def eight(clip: dict[str, Any]) -> Any:
        video = clip["video"]
        return video[:, (frames * video.shape[1] // SPEC.frames)].to(torch.uint8)

    def endless() -> Iterator[object]:
        while True:
            yield from labeled_video_dataset(
                str(table), make_clip_sampler("random", SPEC.duration), transform=eight, decode_audio=False
            )

    clips = endless()
    return lambda _: next(clips)


def readable_by_all(videos: VideoSet) -> tuple[VideoSet, list[str]]:
    """Return the videos that PyTorchVideo can read, and the names of the others."""
    from pytorchvideo.data.encoded_video import EncodedVideo

    good: list[int] = []
    bad: list[int] = []
    for place, video in enumerate(videos.videos):
        try:
            clip = EncodedVideo.from_path(str(video.path), decode_audio=False).get_clip(0, SPEC.duration)
        except Exception as error:  # noqa: BLE001 - PyTorchVideo can raise any exception for a file that it cannot read
            print(f"PyTorchVideo: {video.key}: {type(error).__name__}")
            clip = None
        (good if clip and clip["video"] is not None else bad).append(place)
    return videos.subset(good), [videos[place].key for place in bad]


def measure(videos: VideoSet, scratch: Path, *, clips: int, rounds: int) -> dict[str, float]:
    """Measure the seconds per clip of every reader."""
    contestants = {
        OURS: ours(videos, following=False), MOTION: ours(videos, following=True), BARE: bare(videos),
        PEER: peer(videos, scratch),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number, (name, read) in itertools.product(range(rounds + 1), contestants.items()):
        begun = time.perf_counter()
        for place in range(clips):
            read(number * clips + place)
        if number:  # the first round loads the files into memory and indexes them
            seconds[name].append((time.perf_counter() - begun) / clips)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="*", default=[], help="folders of videos")
    parser.add_argument("--seconds", type=int, default=10, help="duration of the generated files in seconds")
    parser.add_argument("--count", type=int, default=20, help="clips per round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        sets = generated(Path(scratch), arguments.seconds)
        for folder in arguments.videos:
            sets[folder.parent.name if folder.name == "train" else folder.name] = open_videos(folder)
        omissions = {}
        for name, videos in sets.items():
            common, omissions[name] = readable_by_all(videos)
            seconds = measure(common, Path(scratch), clips=arguments.count, rounds=arguments.rounds)
            for contestant, per_clip in seconds.items():
                rows.append(
                    [name, contestant, _three(1e3 * per_clip), _three(1 / per_clip), _three(seconds[PEER] / per_clip)]
                )
                print(*rows[-1], sep="\t", flush=True)
    if arguments.out:
        config = {"frames": SPEC.frames, "stride": SPEC.stride, "count": arguments.count, "rounds": arguments.rounds}
        write_result(
            arguments.out,
            {
                "name": arguments.out.stem, **provenance(), "seeds": [0],
                "config": {**config, "threads": 1, "left_out": omissions},
                "table": {"columns": ["videos", "reader", "ms/clip", "clips/s", "times PyTorchVideo"], "rows": rows},
                "notes": [
                    "One process and one thread; a clip has 8 frames of a window of 64 frames at 30 frames per second, "
                    f"at a random time; medians of {arguments.rounds} alternating rounds.",
                ],
            },
        )  # fmt: skip


def _three(value: float) -> float:
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main()
