"""Files as cameras, streams and editors leave them: the frames are those that the ffmpeg program shows."""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from contrastive_core.errors import UserError
from ssl_video.cli import main
from ssl_video.data import ClipSpec, index_video, open_videos, read_clip
from ssl_video.data.audio_reader import read_audio
from ssl_video.data.check import examine
from ssl_video.data.reader import every_frame, read_frames

FFMPEG = shutil.which("ffmpeg")
pytestmark = pytest.mark.skipif(FFMPEG is None, reason="the ffmpeg program makes these files")

RATE = 30
X264 = ("-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "veryfast")
OPEN_GOP = (*X264, "-x264-params", "open-gop=1:keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0")


def ffmpeg(*arguments: object) -> bytes:
    command = [str(FFMPEG), "-y", "-nostdin", "-v", "error", "-threads", "1", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def source(seconds: float = 2, *, size: str = "64x48", rate: int = RATE, kind: str = "testsrc2") -> tuple[str, ...]:
    return ("-f", "lavfi", "-i", f"{kind}=size={size}:rate={rate}:duration={seconds}")


def shown(path: Path) -> list[np.ndarray]:
    """Return all frames as the ffmpeg program shows them."""
    data = ffmpeg(
        "-i", path, "-an", "-fps_mode", "passthrough", "-f", "image2pipe", "-pix_fmt", "rgb24", "-c:v", "ppm", "-"
    )
    frames, at = [], 0
    while at < len(data):
        head = data[at : at + 40].split(b"\n", 3)
        width, height = map(int, head[1].split())
        at += sum(len(line) + 1 for line in head[:3])
        frames.append(np.frombuffer(data, np.uint8, 3 * width * height, at).reshape(height, width, 3))
        at += 3 * width * height
    return frames


def differ(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours.astype(int) - theirs).mean())


def assert_same_frames(path: Path, *, tolerance: float = 0.5) -> None:
    """Compare frames read in order and at random positions."""
    expected = shown(path)
    assert len(index_video(path)) == len(expected) > 0
    assert max(map(differ, every_frame(path), expected)) <= tolerance
    draw = random.Random(0)
    for _ in range(6):
        wanted = sorted({draw.randrange(len(expected)) for _ in range(3)})
        found = read_frames(path, wanted)
        assert all(differ(found[frame], expected[frame]) <= tolerance for frame in wanted), wanted


def cut(path: Path, source_: Path, *options: str) -> Path:
    """Return the end of a file, cut between key frames without encoding it again."""
    ffmpeg("-ss", "0.7", "-i", source_, "-c", "copy", *options, path)
    return path


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def plain(folder: Path, name: str, *codec: str, **options: object) -> Path:
    ffmpeg(*source(**options), *(codec or X264), folder / name)  # type: ignore[arg-type]
    return folder / name


def turned(folder: Path, a: float, b: float, c: float, d: float) -> Path:
    """Write a file whose display matrix maps (x, y) to (a x + c y, b x + d y)."""
    data = bytearray(plain(folder, "upright.mp4").read_bytes())
    box = data.index(b"tkhd") + 4
    matrix = box + (40 if data[box] == 0 else 52)
    data[matrix : matrix + 36] = struct.pack(
        ">9i", *(round(65536 * value) for value in (a, b, 0, c, d, 0)), 0, 0, 1 << 30
    )
    path = folder / "turned.mp4"
    path.write_bytes(data)
    return path


MATRICES = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_pictures_are_turned_and_mirrored_as_the_file_says(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    path = turned(tmp_path, *matrix)
    assert_same_frames(path)
    index = index_video(path)
    assert (index.height, index.width) == shown(path)[0].shape[:2]


@pytest.mark.parametrize(("degrees", "tilt"), [(45, 45), (30, 30), (100, 10), (-80, 10), (181.5, 1.5)])
def test_a_rotation_between_quarter_turns_is_rounded_and_noted(
    tmp_path: Path, degrees: float, tilt: float, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set/x"
    folder.mkdir(parents=True)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    index = index_video(turned(folder, cosine, sine, -sine, cosine))
    assert index.tilt == pytest.approx(tilt, abs=0.01)
    assert index.orientation.transpose == (round(degrees / 90) % 2 == 1 and degrees != 45)
    assert main(["check", str(tmp_path / "set")]) == 0
    assert "1 video with a rotation that is not a multiple of 90 degrees" in capsys.readouterr().out


def cut_copy(at: Path, first: str, second: str, *codec: str) -> Path:
    ffmpeg("-i", plain(at, first, *codec), "-c", "copy", at / second)
    return at / second


def with_metadata(at: Path) -> Path:
    path = plain(at, "a.mp4", *X264, "-metadata", "title=ZZZZ")
    path.write_bytes(path.read_bytes().replace(b"ZZZZ", b"\xe9\xff\xfe\xe8"))
    return path


def with_cover(at: Path) -> Path:
    picture = plain(at, "cover.jpg", "-frames:v", "1", size="640x480")
    ffmpeg(
        *("-i", picture, "-i", plain(at, "a.mp4"), "-map", "0", "-map", "1", "-c", "copy"),
        *("-disposition:v:0", "attached_pic", "-disposition:v:1", "default", at / "b.mp4"),
    )
    return at / "b.mp4"


def with_two_streams(at: Path) -> Path:
    ffmpeg(
        *(*source(kind="smptebars", size="128x96"), "-i", plain(at, "a.mp4"), "-map", "0:v", "-map", "1:v", *X264),
        *("-disposition:v:0", "0", "-disposition:v:1", "default", at / "b.mkv"),
    )
    return at / "b.mkv"


def negative(at: Path) -> Path:
    ffmpeg(
        *("-i", plain(at, "a.mp4"), "-c", "copy", "-avoid_negative_ts", "disabled"),
        *("-output_ts_offset", "-0.5", at / "b.mkv"),
    )
    return at / "b.mkv"


MADE: dict[str, Callable[[Path], Path]] = {
    "H.264 with B-frames in AVI": lambda at: plain(at, "a.avi", *X264, "-g", "20"),
    "the same, copied to MP4": lambda at: cut_copy(at, "a.avi", "b.mp4"),
    "MPEG-4 with B-frames in AVI": lambda at: plain(at, "a.avi", "-c:v", "mpeg4", "-bf", "2", "-g", "20"),
    "Xvid with two pictures in a packet": lambda at: plain(at, "a.avi", "-c:v", "libxvid", "-bf", "2", "-g", "20"),
    "the same, copied to MP4 (Xvid)": lambda at: cut_copy(at, "x.avi", "y.mp4", "-c:v", "libxvid", "-bf", "2"),
    "raw H.264": lambda at: plain(at, "a.h264", *X264),
    "raw HEVC": lambda at: plain(at, "a.hevc", "-c:v", "libx265", "-x265-params", "log-level=error"),
    "raw MPEG-1": lambda at: plain(at, "a.mpg", "-c:v", "mpeg1video", "-f", "mpeg1video"),
    "raw Motion JPEG": lambda at: plain(at, "a.avi", "-c:v", "mjpeg", "-f", "mjpeg"),
    "an animated GIF": lambda at: plain(at, "a.gif", "-c:v", "gif"),
    "VP8 with invisible reference frames": lambda at: plain(
        at, "a.webm", "-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-arnr-maxframes", "7"
    ),
    "open GOP, whole": lambda at: plain(at, "a.ts", *OPEN_GOP),
    "open GOP, cut, transport stream": lambda at: cut(at / "b.ts", plain(at, "a.ts", *OPEN_GOP)),
    "open GOP, cut, Matroska": lambda at: cut(at / "b.mkv", plain(at, "a.mp4", *OPEN_GOP)),
    "open GOP, cut, MP4 with an edit list": lambda at: cut(at / "b.mp4", plain(at, "a.mp4", *OPEN_GOP)),
    "MPEG-2, cut": lambda at: cut(at / "b.mpg", plain(at, "a.mpg", "-c:v", "mpeg2video", "-bf", "2")),
    "intra refresh, without key frames": lambda at: plain(
        at, "a.mp4", *X264, "-x264-params", "intra-refresh=1:keyint=20:bframes=0"
    ),
    "streams joined, clocks equal": lambda at: joined(
        at / "c.ts", plain(at, "a.ts", *X264), plain(at, "b.ts", *X264, kind="smptebars")
    ),
    "streams joined, another rate and B-frames": lambda at: joined(
        at / "c.ts", plain(at, "a.ts", *X264), plain(at, "b.ts", *X264, kind="smptebars", rate=25)
    ),
    "streams joined, clocks overlap": lambda at: joined(
        at / "c.ts", plain(at, "a.ts"), plain(at, "b.ts", *X264, "-output_ts_offset", "0.71", kind="smptebars")
    ),
    "a clock that jumps ahead": lambda at: joined(
        at / "c.ts", plain(at, "a.ts"), plain(at, "b.ts", *X264, "-output_ts_offset", "30", kind="smptebars")
    ),
    "times that repeat": lambda at: plain(
        at, "a.mkv", *X264, "-bf", "0", "-vf", "setpts='if(eq(mod(N,7),3),PTS-1,PTS)'", "-fps_mode", "passthrough"
    ),
    "a palette that is stated once, in AVI": lambda at: plain(at, "a.avi", "-c:v", "rawvideo", "-pix_fmt", "pal8"),
    "colours 4:1:1": lambda at: plain(at, "a.avi", "-c:v", "rawvideo", "-pix_fmt", "yuv411p"),
    "colours 4:1:0": lambda at: plain(at, "a.avi", "-c:v", "rawvideo", "-pix_fmt", "yuv410p"),
    "a transparent WebM": lambda at: plain(at, "a.webm", "-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p"),
    "10 bits, HDR": lambda at: plain(
        *(at, "a.mp4", "-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-x265-params"),
        "log-level=error:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc",
    ),
    "10 bits, ProRes 4444 with alpha": lambda at: plain(at, "a.mov", "-c:v", "prores_ks", "-pix_fmt", "yuva444p10le"),
    "AV1 with 10 bits": lambda at: plain(
        at, "a.mkv", "-pix_fmt", "yuv420p10le", "-c:v", "libsvtav1", "-preset", "10", size="128x96"
    ),
    "interlaced H.264": lambda at: plain(at, "a.mp4", "-vf", "interlace", "-flags", "+ilme+ildct", *X264, rate=50),
    "interlaced MPEG-2": lambda at: plain(
        at, "a.mpg", "-vf", "interlace", "-c:v", "mpeg2video", "-flags", "+ilme+ildct", rate=50
    ),
    "DV": lambda at: plain(at, "a.dv", "-c:v", "dvvideo", "-pix_fmt", "yuv420p", seconds=0.4, size="720x576", rate=25),
    "VP9 with 4:4:4": lambda at: plain(at, "a.webm", "-c:v", "libvpx-vp9", "-pix_fmt", "yuv444p"),
    "a variable rate": lambda at: plain(
        at, "a.mp4", "-vf", "select='not(mod(n,3))+lt(n,15)'", "-fps_mode", "passthrough", *X264
    ),
    "times before zero": negative,
    "a colour matrix of RGB for YUV": lambda at: plain(
        at, "a.mp4", *X264, "-bsf:v", "h264_metadata=matrix_coefficients=0"
    ),
    "an odd size": lambda at: plain(at, "a.webm", "-vf", "scale=63:47", "-c:v", "libvpx-vp9"),
    "metadata that are no text": with_metadata,
    "a cover picture first": with_cover,
    "the default stream second": with_two_streams,
    "a name like a protocol": lambda at: plain(at, "a:b.mp4").rename(at / "http:b %03d.mp4"),
}


@pytest.mark.parametrize("kind", MADE)
def test_frames_are_those_that_ffmpeg_shows(kind: str, tmp_path: Path) -> None:
    assert_same_frames(MADE[kind](tmp_path))


@pytest.mark.parametrize("orientation", [1, 2, 6])
def test_motion_jpeg_of_photos_is_read_with_its_exif(orientation: int, tmp_path: Path) -> None:
    photos = []
    for number in range(4):
        photo, exif = Image.new("RGB", (48, 32), (20, 60, 120)), Image.Exif()
        photo.paste((250, 40, 40), (4, 4, 12 + 4 * number, 12))
        exif[0x0112] = orientation
        photo.save(tmp_path / f"{number}.jpg", exif=exif, quality=95)
        photos.append(np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"{number}.jpg"))))
    ffmpeg("-framerate", "25", "-i", tmp_path / "%d.jpg", "-c", "copy", tmp_path / "photos.avi")
    # The JPEG decoders of Pillow and FFmpeg interpolate colours differently.
    assert max(map(differ, every_frame(tmp_path / "photos.avi"), photos)) < 5


def test_more_frames_than_milliseconds_keep_their_times(tmp_path: Path) -> None:
    fast = tmp_path / "fast.mkv"
    ffmpeg(*source(0.1, rate=2000), *X264, fast)
    index = index_video(fast)
    assert len(index) == 200
    assert np.abs(index.times - np.arange(200) / 2000).max() < 0.0015
    assert index.duration == pytest.approx(0.1, abs=0.002)


def test_leading_frames_stated_at_the_time_of_the_first_are_left_out(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mkv"
    ffmpeg(*source(2, rate=25), "-c:v", "mpeg2video", "-bf", "2", "-g", "12", "-b:v", "2M", whole)
    assert_same_frames(cut(tmp_path / "cut.ts", whole))


def test_joined_recordings_follow_one_another_in_time(tmp_path: Path) -> None:
    for name in ("streams joined, another rate and B-frames", "a clock that jumps ahead"):
        folder = tmp_path / name
        folder.mkdir()
        index = index_video(MADE[name](folder))
        assert (np.diff(index.times) > 0).all()
        assert index.duration == pytest.approx(4, abs=0.1)


def test_pictures_that_change_their_size_become_one_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide, tall = plain(tmp_path, "a.ts"), plain(tmp_path, "b.ts", *X264, "-output_ts_offset", "2", size="48x64")
    (tmp_path / "set/x").mkdir(parents=True)
    path = joined(tmp_path / "set/x/turned.ts", wide, tall)
    assert_same_frames(path)
    assert read_clip(path, 1.0, ClipSpec()).frames.shape == (1, 8, 3, 48, 64)
    assert main(["check", str(tmp_path / "set")]) == 0
    assert "picture size that changes" in capsys.readouterr().out


def test_an_unknown_codec_is_the_files_own_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set/x"
    folder.mkdir(parents=True)
    good = plain(folder, "good.mp4")
    data = good.read_bytes()
    place = data.rindex(b"avc1")
    (folder / "bad.mp4").write_bytes(data[:place] + b"zzzz" + data[place + 4 :])
    with pytest.raises(UserError, match=r"bad\.mp4: its video is in the codec 'zzzz', which this FFmpeg cannot decode"):
        index_video(folder / "bad.mp4")
    assert main(["check", str(tmp_path / "set"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [item["files"] for finding in told["errors"] for item in finding["items"]] == [["x/bad.mp4"]]
    assert "codec 'zzzz'" in told["errors"][0]["items"][0]["detail"]


def test_colours_without_a_conversion_are_the_files_own_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set/x"
    folder.mkdir(parents=True)
    plain(folder, "good.mp4")
    path = plain(folder, "ycgco.mp4", *X264, "-bsf:v", "h264_metadata=matrix_coefficients=8")
    with pytest.raises(
        UserError,
        match=r"ycgco\.mp4: its colours cannot be converted to RGB .*matrix 8 \(YCgCo\)\); convert it to BT\.709",
    ):
        list(every_frame(path))
    assert main(["check", str(tmp_path / "set"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [item["files"] for finding in told["errors"] for item in finding["items"]] == [["x/ycgco.mp4"]]


def test_check_finds_what_reading_refuses_and_notes_what_was_patched_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set/x"
    folder.mkdir(parents=True)
    whole = plain(tmp_path, "a.mp4", *X264, "-g", "15", "-bf", "0", size="160x120").read_bytes()
    lost, patched = bytearray(whole), bytearray(whole)
    middle = len(whole) // 2
    lost[middle : middle + 3000] = bytes(3000)
    patched[middle : middle + 40] = bytes(range(40))
    (folder / "lost.mp4").write_bytes(lost)
    (folder / "patched.mp4").write_bytes(patched)
    plain(folder, "whole.mp4")
    refused = set()
    for path in folder.iterdir():
        try:
            list(every_frame(path))
        except UserError:
            refused.add(f"x/{path.name}")
    assert main(["check", str(tmp_path / "set"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    found = {finding["kind"]: {key for item in finding["items"] for key in item["files"]} for finding in told["errors"]}
    assert found["unreadable"] == refused == {"x/lost.mp4"}
    notes = {finding["kind"]: {key for item in finding["items"] for key in item["files"]} for finding in told["notes"]}
    assert notes["damaged"] == {"x/patched.mp4"}


def tone(seconds: float, *, hertz: int = 440) -> tuple[str, ...]:
    return ("-f", "lavfi", "-i", f"sine=frequency={hertz}:sample_rate=48000:duration={seconds}")


def loudness(path: Path, start: float, duration: float = 0.2) -> float:
    samples = read_audio(path, start, duration)
    assert samples is not None
    assert len(samples) == round(duration * 16000)
    return float(np.sqrt(np.square(samples).mean()))


def test_sound_with_a_gap_stays_at_its_moments(tmp_path: Path) -> None:
    path = tmp_path / "gap.mkv"
    filters = "[1:a]volume='if(lt(t,2),1,0.25)':eval=frame,aselect='not(between(t,1,2))'[o]"
    ffmpeg(
        *(*source(3), *tone(3), "-filter_complex", filters, "-map", "0:v", "-map", "[o]"),
        *(*X264, "-c:a", "pcm_s16le", path),
    )
    full = loudness(path, 0.3)
    assert full > 0.05
    assert loudness(path, 1.4) == 0.0
    assert loudness(path, 2.5) == pytest.approx(full / 4, rel=0.05)
    samples = read_audio(path, 0.0, 3.0)
    assert samples is not None
    assert not samples[round(1.1 * 16000) : round(1.9 * 16000)].any()
    assert np.abs(samples[round(2.2 * 16000) :]).max() == pytest.approx(np.abs(samples[:8000]).max() / 4, rel=0.05)


def test_sound_whose_channels_change_is_read_on(tmp_path: Path) -> None:
    parts = []
    for name, channels, offset in (("a.ts", 1, 0.0), ("b.ts", 6, 1.0)):
        parts.append(tmp_path / name)
        ffmpeg(
            *(*source(1), *tone(1), "-output_ts_offset", str(offset), "-ac", str(channels)),
            *(*X264, "-c:a", "aac", parts[-1]),
        )
    path = joined(tmp_path / "both.ts", *parts)
    assert loudness(path, 0.4) > 0.01
    assert loudness(path, 1.4) > 0.001


def test_late_sound_begins_late(tmp_path: Path) -> None:
    path = tmp_path / "late.mp4"
    ffmpeg(
        *(*source(2), "-itsoffset", "1", *tone(1), "-map", "0:v", "-map", "1:a", *X264, "-c:a", "aac", path),
    )
    assert loudness(path, 0.5) == pytest.approx(0, abs=1e-3)
    assert loudness(path, 1.4) > 0.05


def test_frames_larger_than_any_camera_makes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ffmpeg(*source(0.2), *X264, tmp_path / "large.mp4")
    monkeypatch.setattr("ssl_video.data.video_index._LARGEST", 64 * 47)
    with pytest.raises(UserError, match=r"large\.mp4: its frames have 64x48 pixels; expected at most 3,008"):
        index_video(tmp_path / "large.mp4")


@pytest.mark.parametrize("how", ["mp4", "mkv", "avi", "avi sound", "mkv sound"])
def test_a_file_without_its_end_is_noted(tmp_path: Path, how: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The first part of the file is read, and the missing rest is reported once; whole files are not reported."""
    suffix, _, sound = how.partition(" ")
    (tmp_path / "set").mkdir()
    whole, cut = tmp_path / f"set/whole.{suffix}", tmp_path / f"set/cut.{suffix}"
    codec = ("-c:v", "mpeg4") if suffix == "avi" else X264
    extra = ("-f", "lavfi", "-i", "sine=duration=4") if sound else ()
    front = ("-movflags", "+faststart") if suffix == "mp4" else ()
    ffmpeg(*source(4, size="96x64"), *extra, *codec, "-g", 12, *front, whole)
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    index = index_video(cut)
    assert index_video(whole).stated == 0
    assert index.stated == pytest.approx(4, abs=0.1)
    assert index.duration < 3.4
    for _ in range(2):
        read_clip(cut, 0.0, ClipSpec(frames=2, stride=2))
        read_clip(whole, 0.0, ClipSpec(frames=2, stride=2))
    said = capfd.readouterr().err
    assert said.count("note: ") == 1
    assert f"note: {cut}: ends after {round(index.duration, 2):g} s of the 4" in said
    _, findings = examine(open_videos(tmp_path / "set"), decode=False)
    (found,) = [finding for finding in findings if finding.kind == "shortened"]
    assert found.items[0].files == [cut.name]


@pytest.mark.parametrize("how", ["longer sound", "edit list", "late video", "late start", "slow last frame"])
def test_whole_files_do_not_seem_to_lack_their_end(tmp_path: Path, how: str) -> None:
    path, video, sound = tmp_path / "a.mkv", source(2, rate=10), ("-f", "lavfi", "-i", "sine=duration=6")
    if how == "longer sound":
        ffmpeg(*video, *sound, *X264, path)
    elif how == "edit list":
        path = tmp_path / "a.mp4"
        ffmpeg(*video, *X264, tmp_path / "source.mp4")
        ffmpeg("-ss", 1.35, "-i", tmp_path / "source.mp4", "-c", "copy", path)
    elif how == "late video":
        ffmpeg("-itsoffset", 3, *video, *sound, *X264, path)
    elif how == "late start":
        ffmpeg(*video, "-vf", "setpts=PTS+3/TB", "-copyts", *X264, path)
    else:
        ffmpeg(*video, "-vf", "setpts='if(eq(N,19),50,N)/10/TB'", "-fps_mode", "vfr", *X264, path)
    assert index_video(path).stated == 0


def test_copies_in_other_containers_have_the_same_pictures(tmp_path: Path) -> None:
    """The files differ, so that neither `make-splits` nor `evaluate` recognises them."""
    first = plain(tmp_path, "a.mp4", size="70x50")
    for ending in ("mkv", "ts", "avi", "mov", "flv"):
        ffmpeg("-i", first, "-c", "copy", tmp_path / f"a.{ending}")
    sound = ("-f", "lavfi", "-i", "sine=440:duration=2", "-c:a", "aac")
    ffmpeg("-i", first, *sound, "-c:v", "copy", tmp_path / "sound.mp4")
    raw = plain(tmp_path, "raw.avi", "-c:v", "rawvideo", "-pix_fmt", "yuv420p", size="70x50", rate=10)
    ffmpeg("-i", raw, "-c", "copy", tmp_path / "raw.mkv")
    plain(tmp_path, "other.mp4", size="70x50", kind="smptebars")
    plain(tmp_path, "other.mkv", size="70x50", kind="smptebars", seconds=1)  # still: says nothing
    plain(tmp_path, "longer.mp4", size="70x50", seconds=2.5)
    _, findings = examine(open_videos(tmp_path))
    [found] = [finding for finding in findings if finding.kind == "same_pictures"]
    assert sorted(sorted(item.files) for item in found.items) == [
        ["a.avi", "a.flv", "a.mkv", "a.mov", "a.mp4", "a.ts", "sound.mp4"], ["raw.avi", "raw.mkv"],
    ]  # fmt: skip
    assert found.level == "warning"
