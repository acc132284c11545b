"""Reading clips: exactly the frames that were written, at any frame rate, and messages about broken files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from contrastive_core.errors import UserError
from ssl_video.data import ClipSpec, clip_start, clip_starts, index_video, read_clip, reader
from ssl_video.data.audio_reader import read_audio
from ssl_video.data.reader import decode_all, every_frame, read_frames

Make = Callable[..., np.ndarray]
Write = Callable[..., Path]


def shown(frames: torch.Tensor) -> list[int]:
    """Return the numbers of frames of `numbered`."""
    return (frames[0, :, :, :4, :4].float().mean(dim=(1, 2, 3)) / 8).round().int().tolist()


def test_frames_come_back_bit_by_bit(write_video: Write, numbered: Make) -> None:
    frames = numbered(30)
    path = write_video("a.mkv", frames, gop=7)
    clip = read_clip(path, 0.1, ClipSpec(frames=3, stride=4), following=True)
    assert clip.frames.shape == (1, 3, 3, 16, 24)
    expected = torch.from_numpy(frames).permute(0, 3, 1, 2)
    assert torch.equal(clip.frames[0], expected[[3, 7, 11]])
    assert torch.equal(clip.following[0], expected[[4, 8, 12]])
    assert clip.audio is None


def test_the_spec_s_window(write_video: Write, numbered: Make) -> None:
    path = write_video("a.mkv", numbered(30))
    spec = ClipSpec(frames=4, stride=8)
    assert shown(read_clip(path, 0.0, spec).frames) == [0, 8, 16, 24]
    assert shown(read_clip(path, 0.5, spec).frames) == [15, 23, 29, 29]  # beyond the end: the last frame
    late = read_clip(path, 0.5, spec, following=True)
    assert shown(late.frames) == [15, 23, 28, 28]  # the last frame has none after it
    assert shown(late.following) == [16, 24, 29, 29]
    assert shown(read_clip(path, 0.0, ClipSpec(frames=4, stride=7, index_rule="linspace")).frames) == [0, 9, 18, 27]


def test_another_frame_rate_shows_the_same_moments(write_video: Write, numbered: Make) -> None:
    path = write_video("a.mkv", numbered(15), rate=15)
    assert shown(read_clip(path, 0.0, ClipSpec(frames=4, stride=8)).frames) == [0, 4, 8, 12]
    assert index_video(path).duration == pytest.approx(1.0, abs=0.01)


def test_variable_frame_rate_by_time(write_video: Write, numbered: Make) -> None:
    ticks = [0, 20, 40, 300, 320, 340, 600]  # 600 a second: three fast frames, a pause of half a second, again
    path = write_video("a.mkv", numbered(7), ticks=ticks)
    index = index_video(path)
    assert index.is_variable
    assert np.allclose(index.times, np.array(ticks) / 600, atol=1e-3)
    assert shown(read_clip(path, 0.0, ClipSpec(frames=5, stride=7.5)).frames) == [0, 2, 3, 5, 6]
    assert not index_video(write_video("b.mkv", numbered(7))).is_variable


def test_one_frame_follows_itself(write_video: Write, numbered: Make) -> None:
    path = write_video("a.mkv", numbered(1))
    clip = read_clip(path, 0.0, ClipSpec(frames=2, stride=8), following=True)
    assert torch.equal(clip.frames, clip.following)


@pytest.mark.parametrize("gop", [1, 12, 250])
def test_b_frames_and_key_frames(write_video: Write, numbered: Make, gop: int) -> None:
    path = write_video("a.mp4", numbered(40, height=32, width=32), gop=gop)
    with av.open(str(path)) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(everything) == len(index_video(path)) == 40
    for wanted in ([0], [39], [17, 5], list(range(20, 36))):
        found = read_frames(path, wanted)
        assert all(np.array_equal(found[n], everything[n]) for n in wanted)


def test_real_files_of_every_codec(shared_data: Path) -> None:
    folder = shared_data / "video_samples"
    for path in sorted(folder.glob("*.m*")):
        index = index_video(path)
        wanted = sorted({0, len(index) // 3, len(index) // 3 + 1, len(index) - 1})
        found = read_frames(path, wanted)
        with av.open(str(path)) as container:
            stream = container.streams[index.stream]
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    shown = frame.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray()
                    # The colours of ten bits are those of the ffmpeg program, see test_video_index, and not PyAV's.
                    most = 0 if index.bits == 8 else 3
                    assert np.abs(found[number].astype(int) - shown).mean() <= most, (path, number)
                if number == max(wanted[:-1]):
                    break
    clip = read_clip(shared_data / "ucf101_10/train/Diving/v_Diving_train_003.avi", 0.2, ClipSpec(), following=True)
    assert clip.frames.shape == (1, 8, 3, 64, 64)


def test_frames_that_a_damaged_stream_returns_in_another_order_are_read(
    write_video: Write, numbered: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = numbered(30)
    path = write_video("a.mkv", frames)
    index = index_video(path)
    in_order = list(reader._walk(path, index))
    monkeypatch.setattr(reader, "_walk", lambda *_: (yield from [*in_order[:3], in_order[6], *in_order[3:]]))
    monkeypatch.setattr(reader, "_LEADS", ())
    assert all(np.array_equal(read_frames(path, [number])[number], frames[number]) for number in range(8))
    assert np.array_equal(np.stack(list(every_frame(path))), frames)
    assert decode_all(path).missing == []
    monkeypatch.setattr(reader, "_walk", lambda *_: (yield from [*in_order[:3], *in_order[4:]]))
    with pytest.raises(UserError, match="frame 3 of 30 cannot be decoded"):
        list(every_frame(path))


def test_broken_files_say_what_is_wrong(write_video: Write, numbered: Make, tmp_path: Path) -> None:
    whole = write_video("a.mp4", numbered(60, height=64, width=64))
    damaged = tmp_path / "damaged.mp4"
    data = bytearray(whole.read_bytes())
    middle = len(data) // 3
    data[middle : len(data) * 2 // 3] = bytes(len(data) * 2 // 3 - middle)
    damaged.write_bytes(data)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: len(data) // 2])
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    spec = ClipSpec(frames=8, stride=8)
    for path in (cut, text):
        with pytest.raises(UserError, match=rf"{path.name}: cannot be read as a video"):
            read_clip(path, 0.0, spec)
    with pytest.raises(UserError, match=r"damaged\.mp4: frame \d+ of 60 cannot be decoded"):
        read_frames(damaged, list(range(60)))
    with pytest.raises(UserError, match="cannot be opened"):
        read_clip(tmp_path / "nowhere.mp4", 0.0, spec)
    stream = tmp_path / "cut.mkv"
    lossless = write_video("b.mkv", numbered(60, height=64, width=64))
    stream.write_bytes(lossless.read_bytes()[:200_000])
    known = len(index_video(stream))
    assert 0 < known < 60  # a Matroska file that breaks off is shorter, and whole as far as it goes
    assert shown(read_clip(stream, 0.0, ClipSpec(frames=2, stride=3)).frames) == [0, 3]


def test_a_broadcast_that_is_joined_late(write_video: Write, numbered: Make, tmp_path: Path) -> None:
    """Before its first key frame, no decoder knows its size or colours."""
    packets = write_video("a.ts", numbered(60, height=64, width=64), gop=60).read_bytes()
    late = tmp_path / "late.ts"
    late.write_bytes(packets[len(packets) // 188 // 2 * 188 :])
    with pytest.raises(UserError, match=r"late\.ts: none of its \d+ frames can be decoded"):
        index_video(late)


def test_a_file_of_sound_is_no_video(shared_data: Path) -> None:
    with pytest.raises(UserError, match="found no video stream"):
        index_video(shared_data / "video_samples/sine_mono_s16.wav")


@pytest.mark.parametrize(("name", "layout"), [("a.nut", "stereo"), ("a.nut", "mono"), ("a.mp4", "stereo")])
def test_sound_is_mono_at_16_khz(write_video: Write, numbered: Make, name: str, layout: str) -> None:
    path = write_video(name, numbered(60), tone=440.0, layout=layout)
    samples = read_audio(path, 0.5, 1.0)
    assert samples.shape == (16000,)
    assert samples.dtype == np.float32
    spectrum = np.abs(np.fft.rfft(samples))
    assert spectrum.argmax() == 440
    assert np.abs(samples).max() == pytest.approx(10000 / 32768, rel=0.1)
    # In phase with the wave that was written: the part asked for, not one beside it.
    expected = np.sin(2 * np.pi * 440 * (0.5 + np.arange(16000) / 16000)) * 10000 / 32768
    if name == "a.nut":
        assert np.abs(samples - expected)[200:-200].max() < 0.03  # half a sample
    assert np.corrcoef(samples, expected)[0, 1] > 0.99
    beyond = read_audio(path, 1.5, 1.0)
    assert np.abs(beyond[4000:7000]).max() > 0.2
    assert np.abs(beyond[10000:]).max() < 0.01


def test_sound_that_starts_late_in_a_container_that_cannot_seek_before_it(tmp_path: Path, numbered: Make) -> None:
    path, late = tmp_path / "a.flv", 0.8
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("flv", rate=30), container.add_stream("pcm_s16le", rate=44100)
        video.height, video.width, video.pix_fmt, sound.layout = 16, 24, "yuv420p", "mono"
        for picture in numbered(60):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        wave = (np.sin(2 * np.pi * 440 * np.arange(44100) / 44100) * 10000).astype(np.int16)
        for first in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, first : first + 1024], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, first + round(late * 44100), Fraction(1, 44100)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    samples = read_audio(path, 0.5, 1.0)
    expected = np.sin(2 * np.pi * 440 * (0.5 - late + np.arange(16000) / 16000)) * 10000 / 32768
    expected[: round((late - 0.5) * 16000)] = 0
    assert np.corrcoef(samples, expected)[0, 1] > 0.99


def test_clips_carry_sound_or_say_there_is_none(write_video: Write, numbered: Make) -> None:
    loud, silent = write_video("a.mkv", numbered(30), tone=1000.0), write_video("b.mkv", numbered(30))
    spec = ClipSpec(frames=2, stride=8)
    clip = read_clip(loud, 0.0, spec, audio=True)
    assert clip.audio.shape == (1, round(spec.duration * 16000))
    assert clip.has_audio.tolist() == [True]
    none = read_clip(silent, 0.0, spec, audio=True)
    assert none.has_audio.tolist() == [False]
    assert not none.audio.any()


def test_starts() -> None:
    spec = ClipSpec()
    draws = [clip_start(10.0, spec, seed=1, id=i) for i in range(300)]
    assert draws == [clip_start(10.0, spec, seed=1, id=i) for i in range(300)]
    assert min(draws) >= 0
    assert max(draws) <= 10 - 64 / 30
    assert abs(np.mean(draws) - (10 - 64 / 30) / 2) < 0.4
    assert clip_start(1.0, spec, seed=1, id=3) == 0
    assert np.allclose(clip_starts(10.0, spec, 10), [(10 - 64 / 30) * i / 10 for i in range(10)])
    assert clip_starts(10.0, spec, 10, to_the_end=True)[-1] == pytest.approx(10 - 64 / 30)
    assert clip_starts(10.0, spec, 1) == [pytest.approx((10 - 64 / 30) / 2)]
    with pytest.raises(UserError, match=r"clip\.frames is 0"):
        ClipSpec(frames=0)


def test_a_changed_file_is_read_anew(write_video: Write, numbered: Make, tmp_path: Path) -> None:
    path = write_video("a.mkv", numbered(10))
    assert len(index_video(path)) == 10
    shutil.copy(write_video("b.mkv", numbered(12)), path)
    assert len(index_video(path)) == 12
