"""Formats that ssl-video reads: videos, sound, lists, splits, models, weights and stored flow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from contrastive_core.errors import UserError
from contrastive_core.training.model_file import save_model
from ssl_video.data.audio_reader import read_audio
from ssl_video.data.clip import ClipSpec
from ssl_video.data.listing import open_videos
from ssl_video.data.official_lists import read_list
from ssl_video.data.reader import decode_all, read_clip
from ssl_video.data.splits import Split, read_split, write_split
from ssl_video.data.video_index import index_video
from ssl_video.data.videos import Video
from ssl_video.models import NetworkOptions, build_network
from ssl_video.models.model_folder import FORMAT, Recipe, load_recognizer
from ssl_video.models.pretrained import begin_from
from ssl_video.optical_flow.cache import FlowCache, FlowSettings
from ssl_video.reports.sections import read_evaluations
from tools.fuzz.core import sign_card
from tools.fuzz.format import Format, digest

_CODECS = {
    # example: ending, codec, pixel format, codec of the sound
    "h264.mp4": (".mp4", "libx264", "yuv420p", "aac"),
    "hevc.mp4": (".mp4", "libx265", "yuv420p", None),
    "mpeg4.mov": (".mov", "mpeg4", "yuv420p", "pcm_s16le"),
    "ffv1.mkv": (".mkv", "ffv1", "bgr0", "flac"),
    "vp9.webm": (".webm", "libvpx-vp9", "yuv420p", "libopus"),
    "vp8.webm": (".webm", "libvpx", "yuv420p", None),
    "av1.mkv": (".mkv", "libsvtav1", "yuv420p", None),
    "mpeg4.avi": (".avi", "mpeg4", "yuv420p", "mp3"),
    "mjpeg.avi": (".avi", "mjpeg", "yuvj420p", None),
    "mpeg2.mpg": (".mpg", "mpeg2video", "yuv420p", "mp2"),
    "h264.ts": (".ts", "libx264", "yuv420p", "aac"),
    "theora.ogv": (".ogv", "libtheora", "yuv420p", None),
    "flv": (".flv", "flv", "yuv420p", None),
    "wmv": (".wmv", "wmv2", "yuv420p", None),
    "gif": (".gif", "gif", "rgb8", None),
    "raw.y4m": (".y4m", "rawvideo", "yuv420p", None),
    "h264.264": (".h264", "libx264", "yuv420p", None),
    "nut": (".nut", "ffv1", "bgr0", None),
}
_SPEC = ClipSpec(frames=4, stride=2, fps=25)


def _make_video(root: Path, example: str) -> list[Path]:
    suffix, codec, pixels, sound = _CODECS[example]
    random = np.random.default_rng(0)
    size = (64, 64) if codec in ("libsvtav1", "libx265") else (32, 48)
    with av.open(str(root / f"x{suffix}"), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.gop_size = 6
        stream.codec_context.thread_count = 1
        if codec == "libx265":
            stream.codec_context.options = {"x265-params": "pools=none:frame-threads=1:log-level=none"}
        track: Any = None
        if sound is not None:
            track = container.add_stream(sound, rate=48000 if sound == "libopus" else 44100)
            track.layout = "stereo"
        still = random.integers(0, 255, (*size, 3), dtype=np.uint8)
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.roll(still, 3 * number, axis=1), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            _add_sound(container, track)
    return [root / f"x{suffix}"]


def _add_sound(container: av.container.OutputContainer, track: av.AudioStream) -> None:
    rate = track.codec_context.sample_rate
    wave = (np.sin(np.arange(rate // 2) * 0.06) * 9000).astype(np.int16)
    sampler = av.AudioResampler(
        format=track.format.name, layout="stereo", rate=rate, frame_size=track.frame_size or 1024
    )
    frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    for block in [*sampler.resample(frame), *sampler.resample(None)]:
        container.mux(track.encode(block))
    container.mux(track.encode(None))


def _read_video(root: Path) -> str:
    (file,) = root.iterdir()
    index = index_video(file)
    clip = read_clip(file, 0.05, _SPEC, following=True, audio=index.has_audio)
    decoding = decode_all(file)
    return digest(clip.frames, clip.audio, index.times, decoding.missing)


def _make_sound(root: Path, example: str) -> list[Path]:
    codec = {"wav": "pcm_s16le", "mp3": "mp3", "flac": "flac", "ogg": "libopus", "m4a": "aac"}[example]
    with av.open(str(root / f"x.{example}"), "w") as container:
        track: Any = container.add_stream(codec, rate=48000 if codec == "libopus" else 44100)
        track.layout = "stereo"
        _add_sound(container, track)
    return [root / f"x.{example}"]


def _read_sound(root: Path) -> str:
    (file,) = root.iterdir()
    return digest(read_audio(file, 0.1, 0.3))


def _videos(root: Path, names: Sequence[str] = ("a/1.mp4", "a/2.mp4", "b/1.mp4", "b/2.mp4")) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def _make_list(root: Path, example: str) -> list[Path]:
    _videos(root)
    text = {
        "table": "path,class,split,group\na/1.mp4,a,train,x\na/2.mp4,a,val,y\nb/1.mp4,b,train,x\nb/2.mp4,b,test,z\n",
        "lines": "a/1.mp4 0\na/2.mp4 0\nb/1.mp4 1\nb/2.mp4 1\n",
        "Kinetics": "label,youtube_id,time_start,time_end,split\na,abc,1,11,train\nb,def,2,12,val\n",
    }[example]
    if example == "Kinetics":
        _videos(root, ("a/abc_000001_000011.mp4", "b/def_000002_000012.mp4"))
    (root / "list.csv").write_text(text)
    return [root / "list.csv"]


def _read_list(root: Path) -> str:
    videos = open_videos(root / "list.csv")
    entries = [(v.key, str(v.path.relative_to(root)), v.label, v.group, v.part) for v in videos.videos]
    return digest(entries, videos.classes, videos.labels() if all(v.label for v in videos.videos) else None)


def _make_official(root: Path, example: str) -> list[Path]:
    _videos(root / "videos")
    if example == "UCF-101":
        (root / "trainlist01.txt").write_text("a/1.mp4 1\nb/1.mp4 2\n")
        return [root / "trainlist01.txt"]
    (root / "a_test_split1.txt").write_text("1.mp4 1\n2.mp4 2\n")
    (root / "b_test_split1.txt").write_text("1.mp4 1\n2.mp4 0\n")
    return [root / "a_test_split1.txt", root / "b_test_split1.txt"]


def _read_official(root: Path) -> str:
    file = root / "trainlist01.txt"
    return digest(tuple(read_list(file if file.exists() else root, open_videos(root / "videos"))))


def _make_split(root: Path, _: str) -> list[Path]:
    split = Split(("a", "b"), ("a/1.mp4", "b/1.mp4"), (("a/1.mp4", "a"),), (("a/2.mp4", "a"),), (("b/2.mp4", "b"),))
    write_split(root / "split.json", split)
    return [root / "split.json"]


def _sign_split(root: Path) -> None:
    try:
        content = json.loads((root / "split.json").read_bytes())
        parts = ("labelled", "validation", "test")
        pairs: dict[str, Any] = {name: tuple((str(k), str(v)) for k, v in content[name]) for name in parts}
        split = Split(tuple(map(str, content["classes"])), tuple(map(str, content["train"])), **pairs)
        content["sha256"] = split.digest
        (root / "split.json").write_text(json.dumps(content))
    except (ValueError, TypeError, KeyError, RecursionError, UserError):
        return


def _recipe() -> Recipe:
    return Recipe(NetworkOptions("small_slow", width=2), ("a", "b"), ClipSpec(), 32, ("rgb", "tg"))


def _make_recognizer(root: Path, _: str) -> list[Path]:
    from dataclasses import asdict

    torch.manual_seed(0)
    recipe = _recipe()
    card = {"format": FORMAT, "recipe": asdict(recipe), "learned_from": ["abc"]}
    save_model(root / "model", dict(recipe.build().state_dict()), card)
    return [root / "model" / "model.json"]


def _read_recognizer(root: Path) -> str:
    recognizer = load_recognizer(root, device="cpu")
    seen = recognizer.learned_from([Video("x", root / "model" / "model.json")])
    return digest(recognizer.network.state_dict(), repr(recognizer.recipe), len(seen))


def _make_weights(root: Path, example: str) -> list[Path]:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = build_network(NetworkOptions("small_slow", width=2), 2).state_dict()
    if example == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, root / "x.safetensors")
        return [root / "x.safetensors"]
    torch.save({"model_state": state}, root / "x.pyth", _use_new_zipfile_serialization=example == "zip")
    return [root / "x.pyth"]


def _read_weights(root: Path) -> str:
    (file,) = root.iterdir()
    network = build_network(NetworkOptions("small_slow", width=2), 2)
    begin_from(network, file)
    return digest(network.state_dict())


def _make_flow(root: Path, example: str) -> list[Path]:
    (video,) = _make_video(root, "ffv1.mkv")
    settings = FlowSettings("dis", "", "opencv 4", 16, "half" if example == "half" else "byte")
    cache = FlowCache(root / "flow", settings)
    cache.write_settings()
    file = cache.file(video)
    file.parent.mkdir()
    count = len(index_video(video)) - 1
    flow = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (count, 2, 4, 6)).astype(np.float32))
    np.save(file, settings.encode(flow))
    return [root / "flow" / "flow.json", file]


def _read_flow(root: Path) -> str:
    cache = FlowCache.open(root / "flow", method="dis")
    return digest(cache.read(root / "x.mkv", [0, 3, 5]))


def _make_evaluation(root: Path, _: str) -> list[Path]:
    from ssl_video.evaluation import FORMAT as EVALUATION

    (root / "evaluation").mkdir()
    content = {"format": EVALUATION, "part": "test", "model_hash": "0", "views": {"rgb": {"top1": 50.0}}}
    (root / "evaluation" / "test.json").write_text(json.dumps(content))
    return [root / "evaluation" / "test.json"]


def _of(*examples: str) -> tuple[str, ...]:
    """Return the examples that this build of FFmpeg can write."""
    return tuple(name for name in examples if _CODECS[name][1] in av.codecs_available)


FORMATS = (
    Format("MP4 and MOV", _make_video, _read_video, _of("h264.mp4", "hevc.mp4", "mpeg4.mov"), header=4096),
    Format("Matroska and WebM", _make_video, _read_video,
           _of("ffv1.mkv", "vp9.webm", "vp8.webm", "av1.mkv", "nut"), header=2048),
    Format("AVI", _make_video, _read_video, _of("mpeg4.avi", "mjpeg.avi"), header=2048),
    Format("MPEG and transport streams", _make_video, _read_video,
           _of("mpeg2.mpg", "h264.ts", "h264.264"), header=2048),
    Format("Ogg, FLV, WMV, GIF, Y4M", _make_video, _read_video,
           _of("theora.ogv", "flv", "wmv", "gif", "raw.y4m"), header=2048),
    Format("sound", _make_sound, _read_sound, ("wav", "mp3", "flac", "ogg", "m4a")),
    Format("list of videos", _make_list, _read_list, ("table", "lines", "Kinetics"), "csv"),
    Format("official list of videos", _make_official, _read_official, ("UCF-101", "HMDB-51"), "csv"),
    Format("split of videos", _make_split, lambda root: digest(vars(read_split(root / "split.json"))), kind="json",
           has_checksum=True),
    Format("split of videos, signed", _make_split, lambda root: digest(vars(read_split(root / "split.json"))),
           kind="json", sign=_sign_split),
    Format("recognizer, signed", _make_recognizer, _read_recognizer, kind="json", sign=sign_card),
    Format("weights of PyTorchVideo", _make_weights, _read_weights, ("zip", "legacy", "safetensors"), header=4096),
    Format("stored flow", _make_flow, _read_flow, ("half", "byte"), "json", header=128),
    Format("evaluation of videos", _make_evaluation,
           lambda root: digest(read_evaluations(root, model_hash=None)), kind="json"),
)  # fmt: skip
