"""Data sets kept in memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from contrastive_core.errors import UserError
from ssl_vision.data import in_memory, open_images, small_in_memory
from ssl_vision.data.dataset import map_images


def test_in_memory_is_every_image_in_order(write, noise) -> None:
    images = open_images(write({f"{i:03d}.png": noise(i) for i in range(150)}))  # more than one thread takes at once
    everything = small_in_memory(images)
    assert everything is not None
    assert everything.dtype == torch.uint8
    assert everything.shape == (150, 3, 10, 12)
    assert (everything == torch.stack([images.read(i) for i in range(150)])).all()
    assert (everything == in_memory(images)).all()


def test_real_files_in_memory(write, cifar_files: dict[str, bytes]) -> None:
    images = open_images(write(cifar_files))
    everything = in_memory(images)
    assert everything.shape == (40, 3, 32, 32)
    assert all((everything[i] == images.read(i)).all() for i in range(40))
    assert images.classes == sorted({name.split("/")[-2] for name in cifar_files})


def test_a_set_in_memory_gives_its_own_tensor() -> None:
    images = open_images("digits")
    for everything in (in_memory(images), small_in_memory(images)):
        assert everything is not None
        assert everything.data_ptr() == images.read(0).data_ptr()


def test_two_sizes_are_named(write, noise) -> None:
    root = write({"a.png": noise(0), "b.png": noise(1), "c.png": noise(2, size=(12, 11))})
    images = open_images(root)
    assert small_in_memory(images) is None
    with pytest.raises(UserError) as caught:
        in_memory(images)
    assert str(caught.value) == (
        f"{root}/c.png is 12x11 px, {root}/a.png 12x10 px; images in memory must have one size. Read them from files "
        "(--load files)"
    )


def test_rotated_images_count_as_they_are_seen(write, noise, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write({"a.png": noise(0)})
    noise(1, size=(10, 12)).save(tmp_path / "b.jpg", exif=exif)  # stored upright, seen lying
    images = open_images(tmp_path)
    assert small_in_memory(images) is not None
    assert in_memory(images).shape == (2, 3, 10, 12)


def test_a_limit_says_how_much_is_needed(write, noise) -> None:
    root = write({f"{i}.png": noise(i, size=(64, 64)) for i in range(4)})
    images = open_images(root)
    needed = 4 * 3 * 64 * 64
    assert in_memory(images, limit=needed).numel() == needed
    assert small_in_memory(images, limit=needed - 1) is None
    with pytest.raises(UserError, match=r"4 images of 64x64 px take 4\.58e-05 GiB, the limit is .*--load files"):
        in_memory(images, limit=needed - 1)


def test_large_images_stay_in_their_files(write, noise) -> None:
    assert small_in_memory(open_images(write({"a.png": noise(0, size=(129, 8))}))) is None
    assert small_in_memory(open_images(write({"a.png": noise(0, size=(128, 8))}))) is not None


def test_the_first_bad_file_is_named_and_the_rest_left(write, noise) -> None:
    files = {f"{i:04d}.png": noise(i) for i in range(40)}
    root = write({**files, "0007.png": b"", "0009.png": b""})
    images = open_images(root)
    for decode in (in_memory, small_in_memory):
        with pytest.raises(UserError, match=r"0007\.png: found an empty file"):
            decode(images)


def test_small_images_are_read_once(write, noise, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_images(write({f"{i:02d}.png": noise(i) for i in range(20)}))
    reads: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path.name), read_bytes(path))[1])
    assert small_in_memory(images) is not None
    # The first one's size decides whether the others are decoded, and its pixels say of which kind they are.
    assert sorted(reads) == sorted(["00.png", "00.png", *(f"{i:02d}.png" for i in range(20))])


@pytest.fixture
def square():
    """A slow square that records its arguments and threads; 70 and 75 are too large."""

    class Square:
        def __init__(self) -> None:
            self.begun: set[int] = set()
            self.threads: set[int] = set()

        def __call__(self, index: int) -> int:
            self.begun.add(index)
            self.threads.add(threading.get_ident())
            time.sleep(0.001)
            if index in (70, 75):
                raise ValueError(index)
            return index * index

    return Square()


def test_map_images_keeps_the_order_and_stops_at_the_first_error(square) -> None:
    results = map_images(square, 6400)
    assert [next(results) for _ in range(64)] == [i * i for i in range(64)]  # what one thread takes at once
    with pytest.raises(ValueError, match="70"):
        next(results)
    assert len(square.begun) < 3200
    assert threading.get_ident() not in square.threads
    assert list(map_images(square, 0)) == []


def test_map_images_stops_when_no_more_is_wanted(square) -> None:
    results = map_images(square, 6400)
    next(results)
    results.close()
    assert len(square.begun) < 3200
