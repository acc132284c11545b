"""What a file is that should have been an image: said in the words of somebody who has to mend it."""

from __future__ import annotations

from typing import Literal

# How a file begins, and what it then is. Images of kinds that are not read come with the way out.
_BEGINNINGS = (
    (b"\xff\xd8\xff", "a JPEG with a damaged or cut off header"),
    (b"\x89PNG", "a PNG with a damaged or cut off header"),
    (b"GIF8", "a GIF with a damaged or cut off header"),
    (b"BM", "a BMP with a damaged or cut off header"),
    (b"II*\0", "a TIFF with a damaged or cut off directory"),
    (b"MM\0*", "a TIFF with a damaged or cut off directory"),
    (b"RIFF", "a WebP with a damaged or cut off header, or another RIFF file"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the file it stands for (git lfs pull fetches that)"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"8BPS", "a Photoshop file, which is not read"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image, which is not read"),
    (b"\xff\x0a", "a JPEG XL image, which is not read"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
)
_ISO_BRANDS = {b"heic": "a HEIC image", b"heix": "a HEIC image", b"mif1": "a HEIF image", b"avif": "an AVIF image"}


def describe(data: bytes) -> str:  # noqa: PLR0911 - one return per kind
    """The content of a file that no image reader accepts, in a few words."""
    if not data:
        return "an empty file"
    if not data.strip(b"\0"):
        return f"{len(data)} zero bytes and nothing else"
    for beginning, what in _BEGINNINGS:
        if data.startswith(beginning):
            return what
    if data[4:8] == b"ftyp":
        return f"{_ISO_BRANDS.get(data[8:12], 'a video or an image of its family')}, which is not read"
    start = data[:400].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (a download that failed?)"
    text = data[:48].decode("utf-8", errors="replace").strip()
    if text.replace("\n", " ").replace("\t", " ").isprintable() and "\ufffd" not in text:
        return f"text that begins {text[:32]!r}"
    return "no known image format"


def describe_tiff(data: bytes, *, more_than: int = 0) -> str | None:
    """What a TIFF with an intact directory holds, and what to do; None of other files and of those with fewer channels.

    Args:
        data: Content of the file.
        more_than: Channels that the file must have more of.
    """
    order: Literal["little", "big"] | None = {b"II*\0": "little", b"MM\0*": "big"}.get(data[:4])  # type: ignore[assignment]
    if order is None:
        return None

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    directory = number(4, 4)
    tags: dict[int, int] = {}
    for entry in range(number(directory, 2)):
        at = directory + 2 + 12 * entry
        if at + 12 > len(data):
            return None
        size, count = {1: 1, 3: 2, 4: 4}.get(number(at + 2, 2), 0), number(at + 4, 4)
        place = at + 8 if size * count <= 4 else number(at + 8, 4)
        tags[number(at, 2)] = number(place, size)
    width, height, bands, bits = (tags.get(tag, default) for tag, default in ((256, 0), (257, 0), (277, 1), (258, 1)))
    if not width or not height or (273 not in tags and 324 not in tags) or bands <= more_than:
        return None
    return (
        f"found a TIFF of {bands} channels of {bits} bits ({width}x{height} px), expected at most 4 of 8 bits, or 1 or "
        f"3 of 16; to train on all of them say --channels {bands}, else export the ones to use"
    )
