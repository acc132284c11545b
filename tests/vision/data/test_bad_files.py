"""Bad files in a long run are counted, listed and replaced, up to a limit."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from contrastive_core.errors import UserError
from ssl_vision.data import in_memory, open_images, skip_bad, small_in_memory
from ssl_vision.data.bad_files import read_log

BAD = (3, 4, 19)


@pytest.fixture
def images(write, noise):
    """Twenty images; files 3, 4 and 19 are bad."""
    files = {f"cat/{i:02d}.png": noise(i) for i in range(20)}
    return open_images(write(files | {f"cat/{i:02d}.png": b"broken" for i in BAD}))


@pytest.fixture
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "out" / "bad_files.jsonl"


def test_the_next_readable_image_stands_in(images, log: Path, capfd: pytest.CaptureFixture[str]) -> None:
    readable = skip_bad(images, max_bad=0.15, log=log)
    assert len(readable) == 20
    assert readable.ids.tolist() == list(range(20))
    stand_ins = {3: 5, 4: 5, 19: 0}
    for i in range(20):
        assert (readable.read(i) == images.read(stand_ins.get(i, i))).all()
    found = read_log(log)
    assert list(found) == list(BAD)
    assert found[19].startswith(f"{images.path(19)}: found text starting with 'broken'")
    shown = capfd.readouterr().err
    assert all(shown.count(f"skipped: {images.path(i)}: found text") == 1 for i in BAD)


def test_what_is_read_does_not_depend_on_the_order_of_reading(images, log: Path) -> None:
    first = skip_bad(images, max_bad=0.15, log=log)
    forwards = torch.stack([first.read(i) for i in range(20)])
    second = skip_bad(images, max_bad=0.15, log=log.with_name("other.jsonl"))
    backwards = torch.stack([second.read(i) for i in reversed(range(20))]).flip(0)
    assert (forwards == backwards).all()
    assert (in_memory(skip_bad(images, max_bad=0.15, log=log)) == forwards).all()  # as after a restart
    assert len(log.read_text().splitlines()) == len(BAD)
    assert (in_memory(pickle.loads(pickle.dumps(first))) == forwards).all()


def test_one_too_many_is_an_error_that_names_them(images, log: Path) -> None:
    readable = skip_bad(images, max_bad=0.1, log=log)  # two of twenty
    for i in range(19):
        readable.read(i)
    with pytest.raises(UserError) as caught:
        readable.read(19)
    message = str(caught.value)
    assert "found 3 unreadable files, but only 2 of 20 may be skipped" in message
    assert all(images.path(i) in message for i in BAD)
    assert "`ssl-vision check` lists all of them" in message


def test_mended_files_do_not_count(images, log: Path) -> None:
    readable = skip_bad(images, max_bad=0.1, log=log)
    with pytest.raises(UserError, match="found 3 unreadable files"):
        in_memory(readable)
    for i in (3, 4):
        images.files[i].write_bytes(images.files[0].read_bytes())
    again = skip_bad(images, max_bad=0.1, log=log)
    assert (again.read(3) == images.read(0)).all()
    assert (again.read(19) == images.read(0)).all()


def test_without_a_share_the_set_is_itself(images, log: Path) -> None:
    assert skip_bad(images, max_bad=0, log=log) is images
    digits = open_images("digits")
    assert skip_bad(digits, max_bad=0.5, log=log) is digits
    with pytest.raises(UserError, match=r"max_bad is 1\.5; expected a fraction"):
        skip_bad(images, max_bad=1.5, log=log)
    assert not log.exists()


def test_a_share_of_less_than_one_image_allows_one(images, log: Path) -> None:
    readable = skip_bad(images, max_bad=0.04, log=log)
    assert (readable.read(19) == images.read(0)).all()
    with pytest.raises(UserError, match="found 2 unreadable files, but only 1 of 20 may be skipped"):
        readable.read(3)


def test_labels_stay_with_the_strict_set(images, log: Path) -> None:
    readable = skip_bad(images, max_bad=0.2, log=log)
    assert images.is_labelled
    assert readable.label(0) is None
    with pytest.raises(UserError, match="bad files are skipped only if no labels are needed"):
        readable.labels()


def test_only_bad_files(write, log: Path) -> None:
    images = open_images(write({"a.png": b"", "b.png": b""}))
    with pytest.raises(UserError, match="found 2 unreadable files, but only 1 of 2"):
        skip_bad(images, max_bad=0.99, log=log).read(0)


def test_sizes_are_those_of_what_is_read(images, log: Path) -> None:
    readable = skip_bad(images, max_bad=0.2, log=log)
    assert readable.size(3) == (10, 12)
    assert small_in_memory(readable) is not None


def test_a_line_being_written_is_no_line_yet(log: Path) -> None:
    log.parent.mkdir(parents=True)
    log.write_text('{"index": 5, "path": "a", "reason": "r"}\n{"index": 6, "pa')
    assert read_log(log) == {5: "r"}
    assert read_log(log.with_name("none")) == {}


class _Read(Dataset[torch.Tensor]):
    def __init__(self, images: object) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images.read(index), os.getpid()


def test_workers_share_one_count(images, log: Path) -> None:
    alone = skip_bad(images, max_bad=0.15, log=log.with_name("alone.jsonl"))
    readable = skip_bad(images, max_bad=0.15, log=log)
    loaded = list(DataLoader(_Read(readable), batch_size=None, num_workers=2))
    assert len({int(pid) for _, pid in loaded}) == 2
    assert all((picture == alone.read(i)).all() for i, (picture, _) in enumerate(loaded))
    assert list(read_log(log)) == list(BAD)
    strict = skip_bad(images, max_bad=0.1, log=log.with_name("strict.jsonl"))
    with pytest.raises(UserError, match="found 3 unreadable files"):
        list(DataLoader(_Read(strict), batch_size=None, num_workers=2))
