"""Image files of every mode, against hand-computed pixels or the definition of the format."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageFile, PngImagePlugin

from contrastive_core.errors import UserError
from ssl_vision.data import decode as decoding
from ssl_vision.data.dataset import ReadOptions
from ssl_vision.data.decode import UndecodableError, decode, read_image, read_size
from ssl_vision.data.listing import EXTENSIONS

ORIENTATION = 0x0112
# EXIF 2.32, tag 274: which visual side the stored row 0 and the stored column 0 are.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> list[list[list[int]]]:
    """Return rows of [r, g, b]."""
    return decode(data).pixels.transpose(1, 2, 0).tolist()


def png(width: int, height: int, *, depth: int, colour: int, rows: list[bytes], extra: bytes = b"") -> bytes:
    """Assemble a PNG by hand; colour 0 is gray, 2 RGB, 4 gray and alpha, 6 RGBA."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def upright(stored: np.ndarray, row0: str, column0: str) -> np.ndarray:
    """Return where each stored pixel is shown, by the definition of the tag."""
    rows, columns = stored.shape[:2]
    seen = stored if row0 in ("top", "bottom") else stored.transpose(1, 0, 2)
    seen = np.zeros_like(seen)
    height, width = seen.shape[:2]
    for i in range(rows):
        for j in range(columns):
            place = {row0: i, column0: j}
            y = place["top"] if "top" in place else height - 1 - place["bottom"]
            x = place["left"] if "left" in place else width - 1 - place["right"]
            seen[y, x] = stored[i, j]
    return seen


def test_rgb_is_channels_first_uint8_and_contiguous(tmp_path: Path) -> None:
    rows = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    path = tmp_path / "a.png"
    Image.fromarray(rows).save(path)
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 2, 3)
    assert image.is_contiguous()
    assert image[1].tolist() == [[1, 4, 7], [10, 13, 16]]
    image += 1  # its own memory


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_exif_orientation(orientation: int, kind: str, options: dict[str, object], tmp_path: Path) -> None:
    stored = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.fromarray(stored), kind, exif=exif, **options))
    expected = upright(stored, *SIDES[orientation])
    picture = decode(path.read_bytes())
    assert picture.pixels.transpose(1, 2, 0).tolist() == expected.tolist()
    assert picture.orientation == orientation
    assert read_size(path) == expected.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_a_jpeg(orientation: int, tmp_path: Path) -> None:
    # One colour per 16x16 block survives the compression.
    corners = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [0, 250, 250], [0, 0, 0]]], np.uint8)
    stored = corners.repeat(16, axis=0).repeat(16, axis=1)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(stored).save(path, exif=exif, quality=95, subsampling=0)
    expected = torch.from_numpy(upright(stored, *SIDES[orientation])).permute(2, 0, 1)
    image = read_image(path)
    assert image.shape == expected.shape
    assert (image.int() - expected.int()).abs().max() <= 12
    assert read_size(path) == tuple(expected.shape[1:])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("block", [b"garbage", b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\xff\xff"])
def test_a_damaged_exif_block_costs_nothing(kind: str, block: bytes) -> None:
    image = Image.new("RGB", (4, 2), (200, 30, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert decode(encoded(image, kind, exif=block)).pixels.shape == (3, 2, 4)


def test_gray_in_8_2_and_1_bits() -> None:
    assert pixels(png(2, 1, depth=8, colour=0, rows=[bytes([7, 200])])) == [[[7, 7, 7], [200, 200, 200]]]
    assert pixels(png(4, 1, depth=2, colour=0, rows=[bytes([0b00_01_10_11])])) == [[[v] * 3 for v in (0, 85, 170, 255)]]
    assert pixels(png(4, 1, depth=1, colour=0, rows=[bytes([0b0110_0000])])) == [[[v] * 3 for v in (0, 255, 255, 0)]]


def test_16_bits_keep_their_high_byte() -> None:
    values = (0, 255, 256, 32768, 65279, 65535)
    high = [0, 0, 1, 128, 254, 255]
    assert pixels(png(6, 1, depth=16, colour=0, rows=[struct.pack(">6H", *values)])) == [[[v] * 3 for v in high]]
    assert pixels(png(2, 1, depth=16, colour=2, rows=[struct.pack(">6H", *values)])) == [[high[:3], high[3:]]]
    for order in ("<", ">"):
        array = np.array([values], dtype=f"{order}u2")
        image = Image.frombytes("I;16" if order == "<" else "I;16B", (6, 1), array.tobytes())
        assert pixels(encoded(image, "TIFF")) == [[[v] * 3 for v in high]]


def test_pgm_with_a_maximum_of_its_own_is_scaled() -> None:
    assert pixels(b"P5 3 1 1023 " + struct.pack(">3H", 0, 512, 1023)) == [[[0] * 3, [128] * 3, [255] * 3]]


def test_alpha_is_laid_over_white() -> None:
    # colour * alpha + 255 * (1 - alpha), alpha = 51/255 = 0.2: 100 -> 224, 0 -> 204.
    row = bytes([100, 0, 255, 51]) + bytes([10, 20, 30, 0]) + bytes([10, 20, 30, 255])
    assert pixels(png(3, 1, depth=8, colour=6, rows=[row])) == [[[224, 204, 255], [255, 255, 255], [10, 20, 30]]]
    assert pixels(png(2, 1, depth=8, colour=4, rows=[bytes([100, 51, 9, 255])])) == [[[224] * 3, [9] * 3]]
    row = struct.pack(">4H", 100 * 257, 0, 65535, 51 * 257)
    assert pixels(png(1, 1, depth=16, colour=6, rows=[row])) == [[[224, 204, 255]]]


def test_a_transparent_colour_is_white() -> None:
    clear = chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
    data = png(2, 1, depth=8, colour=2, rows=[bytes([1, 2, 3, 4, 5, 6])], extra=clear)
    assert pixels(data) == [[[255, 255, 255], [4, 5, 6]]]
    clear = chunk(b"tRNS", struct.pack(">H", 9))
    assert pixels(png(2, 1, depth=8, colour=0, rows=[bytes([9, 8])], extra=clear)) == [[[255] * 3, [8] * 3]]
    clear = chunk(b"tRNS", struct.pack(">H", 300))
    data = png(3, 1, depth=16, colour=0, rows=[struct.pack(">3H", 300, 301, 65535)], extra=clear)
    assert pixels(data) == [[[255] * 3, [1] * 3, [255] * 3]]


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 100, 0, 255])
    image.putdata([0, 1, 2])
    assert pixels(encoded(image, "PNG")) == [[[10, 20, 30], [40, 50, 60], [100, 0, 255]]]
    assert pixels(encoded(image, "PNG", transparency=1)) == [[[10, 20, 30], [255, 255, 255], [100, 0, 255]]]
    alphas = bytes([255, 0, 51])
    assert pixels(encoded(image, "PNG", transparency=alphas)) == [[[10, 20, 30], [255, 255, 255], [224, 204, 255]]]
    assert pixels(encoded(image, "GIF", transparency=0)) == [[[255, 255, 255], [40, 50, 60], [100, 0, 255]]]


def test_cmyk() -> None:
    image = Image.new("CMYK", (3, 1))
    # (255 - ink) * (255 - black) / 255: 155 * 127 / 255 = 77.2
    image.putdata([(0, 255, 255, 0), (0, 0, 0, 255), (100, 0, 255, 128)])
    assert pixels(encoded(image, "TIFF")) == [[[255, 0, 0], [0, 0, 0], [77, 127, 0]]]
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = decode(encoded(flat, "JPEG", quality=95)).pixels[:, 8, 8].astype(int)
    assert abs(found - [255, 0, 0]).max() <= 4


def test_the_first_frame_and_the_first_page() -> None:
    first, second = Image.new("RGB", (2, 2), (255, 0, 0)), Image.new("RGB", (2, 2), (0, 0, 255))
    for kind in ("GIF", "TIFF"):
        data = encoded(first, kind, save_all=True, append_images=[second])
        assert decode(data).pixels[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_32_bits_are_refused(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "depth.tif"
    Image.fromarray(np.ones((2, 2), dtype=dtype)).save(path)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*32-bit .*pixels.*8 or 16 bits"):
        read_image(path)


SAMPLES = {
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", {}),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's own, on what it meets in a TIFF that is cut off
@pytest.mark.parametrize("sample", SAMPLES)
def test_no_part_of_a_file_passes_for_the_whole(sample: str, noise) -> None:
    kind, options = SAMPLES[sample]
    data = encoded(noise(0, size=(40, 30)), kind, **options)
    whole = decode(data).pixels
    for length in (*range(0, len(data) - 40, 17), *range(len(data) - 40, len(data))):
        try:
            assert (decode(data[:length]).pixels == whole).all()
            assert length >= len(data) - 40  # nothing is missing but an end mark
        except UndecodableError:
            pass


def test_truncated_images_stay_refused() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (bytes(5000), "5000 zero bytes"),
        (b"hello, I am a text\n", "text starting with 'hello, I am a text'"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "a PostScript document"),
        (b"\xff\xd8\xff\xe0\0", "a JPEG with a damaged or truncated header"),
        (b"\x93\x84\x01\x00random", "an unknown format"),
    ],
)
def test_what_is_no_image_is_named(content: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: found {found}")
    assert "expected an image; copy or export the file again" in message


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX"])
def test_other_formats_are_not_tried(kind: str, tmp_path: Path, noise) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(encoded(noise(0, size=(16, 16)), kind))
    for read in (read_image, read_size):
        with pytest.raises(UserError, match="found an unknown format, expected an image"):
            read(path)


def test_a_truncated_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(encoded(Image.effect_noise((64, 64), 80).convert("RGB"), "JPEG")[:-200])
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}: cannot be decoded \(.*truncated.*copy or export"):
        read_image(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png: found no such file; restore the image"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "link.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"link\.png: found a broken link"):
        read_image(tmp_path / "link.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder\.png: cannot be opened \(Is a directory\)"):
        read_image(tmp_path / "folder.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="a superuser may read every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(path)
    path.chmod(0)
    with pytest.raises(UserError, match=r"a\.png: cannot be opened \(Permission denied\)"):
        read_image(path)


def test_too_large_an_image_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "map.png"
    Image.new("RGB", (40, 40)).save(path)
    small = ReadOptions(max_megapixels=0.001)
    for read in (read_image, read_size):
        with pytest.raises(
            UserError, match=r"map\.png: is too large: 40x40 px are 0\.0016 megapixels, the limit is 0\.001"
        ):
            read(path, small)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # PIL's own limit, which belongs to the whole process
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == (3, 40, 40)


def tiff(values: np.ndarray, *, bits: int, kind: int = 1, order: str = "<") -> bytes:
    """Assemble an uncompressed TIFF of values [H, W] or [H, W, channels] by hand."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    tail = struct.pack(f"{order}{channels}H", *[bits] * channels) + struct.pack(
        f"{order}{channels}H", *[kind] * channels
    )
    tags = {256: width, 257: height, 259: 1, 262: 1, 277: channels, 278: height, 279: values.nbytes, 284: 1}
    start = 8 + 2 + 12 * (len(tags) + 3) + 4
    entries = {tag: struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()}
    for tag, place, value in ((258, start, bits), (339, start + 2 * channels, kind)):
        end = struct.pack(f"{order}HH", value, 0) if channels == 1 else struct.pack(f"{order}I", place)
        if channels == 2:
            end = struct.pack(f"{order}HH", value, value)
        entries[tag] = struct.pack(f"{order}HHI", tag, 3, channels) + end
    entries[273] = struct.pack(f"{order}HHII", 273, 4, 1, start + len(tail))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    body = values.astype(values.dtype.newbyteorder(order)).tobytes()
    return head + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4) + tail + body


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("channels", "bits"), [(13, 16), (4, 16), (8, 8), (5, 8)])
def test_an_intact_tiff_of_many_channels_is_not_called_damaged(
    channels: int, bits: int, order: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tiff(np.ones((5, 7, channels), dtype=f"u{bits // 8}"), bits=bits, order=order)
    with pytest.raises(
        UndecodableError, match=rf"a TIFF with {channels} channels of {bits} bits \(7x5 px\), expected at most 4"
    ):
        decode(data)
    assert capfd.readouterr().err == ""
    with pytest.raises(UndecodableError, match="damaged or truncated"):
        decode(data[:60])


def test_types_of_pixels_are_named_as_they_are() -> None:
    with pytest.raises(UndecodableError, match=r"found 16-bit signed pixels"):
        decode(tiff(np.full((4, 4), -7, np.int16), bits=16, kind=2))
    with pytest.raises(UndecodableError, match=r"found 32-bit floating-point pixels"):
        decode(tiff(np.ones((4, 4), np.float32), bits=32, kind=3))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_12_bits_in_16_are_scaled_or_warned_of(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"cells.{kind.lower()}"
    values = np.array([[0, 16, 2048, 4095]], np.uint16)
    path.write_bytes(encoded(Image.fromarray(values), kind))
    decoding._warned.clear()
    assert read_image(path)[0].tolist() == [[0, 0, 8, 15]]
    assert f"warning: {path}: found 16-bit pixels below 4096" in capsys.readouterr().err
    assert read_image(path, ReadOptions(bits=12))[0].tolist() == [[0, 1, 128, 255]]
    assert capsys.readouterr().err == ""
    for bits in (7, 17):
        with pytest.raises(UserError, match=rf"bits is {bits}; expected 8 to 16"):
            ReadOptions(bits=bits)


def test_bits_count_in_colour_as_well(tmp_path: Path) -> None:
    reflectance = np.random.default_rng(0).integers(0, 4096, (4, 5, 3)).astype(np.uint16)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, reflectance, photometric="rgb")
    assert decode(path.read_bytes()).dark
    found = read_image(path, ReadOptions(bits=12)).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(found, reflectance / 4095 * 255, atol=1)


def test_bits_without_effect_are_refused() -> None:
    dark, bright = (png(1, 1, depth=16, colour=2, rows=[struct.pack(">3H", 0, 9, v)]) for v in (4095, 4096))
    assert decode(dark).dark
    assert not decode(bright).dark
    assert decode(dark, ReadOptions(bits=16)).dark
    with pytest.raises(UndecodableError, match=r"a PNG in colour with 16 bits per channel, .* --bits 12 would have no"):
        decode(dark, ReadOptions(bits=12))


@pytest.mark.parametrize("block", ["text", "compressed text", "international text", "profile", "damaged"])
def test_a_large_or_damaged_block_of_text_costs_no_pixel(block: str) -> None:
    image, info, profile = Image.new("RGB", (4, 2), (200, 30, 40)), PngImagePlugin.PngInfo(), b""
    if block == "text":
        info.add_text("workflow", "x" * 2_000_000)
    elif block == "compressed text":
        info.add_text("workflow", "x" * 2_000_000, zip=True)
    elif block == "international text":
        info.add_itxt("workflow", "x" * 2_000_000, zip=True)
    elif block == "profile":
        profile = bytes(1_500_000)
    data = encoded(image, "PNG", pnginfo=info, **({"icc_profile": profile} if profile else {}))
    if block == "damaged":
        bad = chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0"
        data = data[:33] + bad + data[33:]
    assert decode(data).pixels[:, 0, 0].tolist() == [200, 30, 40]


@pytest.mark.skipif(".avif" not in EXTENSIONS, reason="this Pillow has no AVIF")
def test_avif_is_read_where_pillow_does(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    Image.new("RGB", (8, 6), (200, 30, 40)).save(path)
    assert (read_image(path)[:, 3, 3].int() - torch.tensor([200, 30, 40])).abs().max() < 6


def test_real_files(cifar_files: dict[str, bytes]) -> None:
    for data in cifar_files.values():
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert (decode(data).pixels.transpose(1, 2, 0) == expected).all()


@pytest.mark.parametrize("part", [b"IDAT", b"IHDR", b"PLTE"])
def test_a_png_whose_checksum_does_not_hold_is_refused(part: bytes) -> None:
    data = bytearray(encoded(Image.new("P", (9, 7), 3), "PNG"))
    checksum = data.index(part) + 4 + int.from_bytes(data[data.index(part) - 4 : data.index(part)], "big")
    data[checksum] ^= 1
    with pytest.raises(UndecodableError, match=r"checksum|damaged"):
        decode(bytes(data))


def test_pipes_and_devices_are_no_images(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(UserError, match=f"{name}: is a pipe or device; expected an image file"):
            read_image(tmp_path / name)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(5 << 30)  # takes no space
    with pytest.raises(UserError, match=r"x\.png: is too large"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("channels", [3, 1])
def test_a_tiff_that_begins_with_its_preview_is_refused(tmp_path: Path, channels: int) -> None:
    pixels = np.zeros((64, 48, 3), np.uint8) if channels == 3 else np.zeros((64, 48), np.uint8)
    with tifffile.TiffWriter(tmp_path / "scan.tif") as file:
        file.write(pixels[::4, ::4], subfiletype=1)
        file.write(pixels)
    with pytest.raises(UserError, match=r"first page is a preview \(12x16 px\) of page 2 \(48x64 px\)"):
        read_image(tmp_path / "scan.tif", channels=channels)
