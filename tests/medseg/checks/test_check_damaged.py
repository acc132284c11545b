"""Whatever a file contains, `check` names the case and continues: damaged headers, checksums, wrong labels."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ssl_medseg.checks import Report, examine
from ssl_medseg.checks.facts import LabelFacts, read_image_facts, read_label_facts
from ssl_medseg.io import Grid
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile
from ssl_medseg.preprocessing import PreprocessingOptions
from tests.medseg.broken_set import AFFINE, SHAPE
from tests.medseg.small_sets import ball, decathlon, save

LABELS = LabelMap(("background", "shell", "core"), (0, 1, 2))
HEADER = 348


def patched(path: Path, *changes: tuple[int, bytes]) -> None:
    """Replace bytes at some places of the uncompressed file."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    for place, new in changes:
        content[place : place + len(new)] = new
    path.write_bytes(gzip.compress(bytes(content)))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images damaged in ways that nibabel does not notice or reports by its own errors."""
    names = ["good", "kind", "offset", "quaternion", "nowhere", "checksum", "end", "all_nan"]
    data = decathlon(tmp_path / "data", names)
    images = {name: data / "imagesTr" / f"{name}.nii.gz" for name in names}
    patched(images["kind"], (70, b"\x01\x00"))  # datatype: single bits
    patched(images["offset"], (108, np.float32(128).tobytes()))  # vox_offset: voxels that begin in the header
    patched(images["quaternion"], (252, b"\x01\x00\x00\x00"), (256, np.float32([2, 2, 2]).tobytes()))
    patched(images["nowhere"], (254, b"\x01\x00"), (280, bytes(48)))  # a sform of zeros
    stored = bytearray(gzip.compress(gzip.decompress(images["checksum"].read_bytes()), compresslevel=0))
    stored[len(stored) // 2] ^= 255
    images["checksum"].write_bytes(bytes(stored))
    images["end"].write_bytes(images["end"].read_bytes()[:-4])
    save(images["all_nan"], np.full((12, 10, 4), np.nan, dtype=np.float32))
    return data


def named(report: Report, kind: str) -> dict[str, str]:
    return {item.files[0]: item.detail for found in report.errors if found.kind == kind for item in found.items}


def test_damaged_files_are_named_and_the_others_are_looked_at(data: Path) -> None:
    report = examine(data)
    said = named(report, "unreadable")
    assert set(said) == {"kind", "offset", "quaternion", "nowhere", "checksum", "end"}
    assert "CRC check failed" in said["checksum"]
    assert "is damaged or truncated. Copy it again" in said["end"]
    assert "is not invertible" in said["nowhere"]
    assert named(report, "not_finite") == {"all_nan": "480 of 480 voxels"}
    assert not named(report, "constant"), "an image without any number is not one of one grey"


def test_what_training_fills_is_a_note(data: Path) -> None:
    path = data / "imagesTr" / "good.nii.gz"
    image = np.asarray(nib.load(path).dataobj).astype(np.float32)
    image[3, 4, 2] = np.nan
    save(path, image)
    assert set(named(examine(data), "not_finite")) == {"good", "all_nan"}
    report = examine(data, preprocessing=PreprocessingOptions(fill_nan=True))
    assert set(named(report, "not_finite")) == {"all_nan"}
    [note] = [found for found in report.notes if found.kind == "filled"]
    assert [(item.files, item.detail) for item in note.items] == [(["good"], "1 of 480 voxels")]


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_no_header_ends_the_check(tmp_path: Path) -> None:
    content = save(tmp_path / "good.nii", ball(0, SHAPE)[0], AFFINE).read_bytes()
    rng = np.random.default_rng(0)
    unusable = 0
    for _ in range(300):
        changed = bytearray(content)
        for place in rng.integers(0, HEADER, size=rng.integers(1, 9)):
            changed[place] = rng.choice([0, 1, 127, 128, 255])
        path = tmp_path / "changed.nii"
        path.write_bytes(bytes(changed))
        unusable += read_image_facts(ImageFile(path)).problem is not None
        read_label_facts(path, None, LABELS)
    assert 30 < unusable < 270, "some bytes matter, some do not"


def test_what_holds_no_voxel_is_said(tmp_path: Path) -> None:
    path = save(tmp_path / "none.nii.gz", np.zeros((3, 3, 0), dtype=np.uint8))
    words = "has the shape 3 x 3 x 0, so no voxels; expected a volume. Export it again"
    assert read_image_facts(ImageFile(path)).problem == words
    assert read_label_facts(path, None, LABELS).problem == words


def label(path: Path, *, first: float, affine: np.ndarray = AFFINE) -> LabelFacts:
    """Return a float label whose first voxel has this value."""
    array = ball(0, SHAPE)[1].astype(np.float32)
    array[0, 0, 0] = first
    return read_label_facts(save(path / "label.nii.gz", array, affine), Grid(SHAPE, AFFINE), LABELS)


@pytest.mark.parametrize(
    ("value", "fractions", "rounded"),
    [(0, 0, 0), (0.0009, 0, 1), (0.9991, 0, 1), *((odd, 1, 0) for odd in (0.0011, 0.5, np.nan, -np.inf, 1e30))],
)
def test_values_are_rounded_within_a_thousandth(tmp_path: Path, value: float, fractions: int, rounded: int) -> None:
    facts = label(tmp_path, first=value)
    assert (facts.fractions, facts.rounded) == (fractions, rounded)
    np.testing.assert_array_equal(facts.examples, [np.float32(value)] * fractions)
    assert set(facts.values) == {0, 1, 2}


def test_a_label_of_several_volumes_is_not_one(tmp_path: Path) -> None:
    path = save(tmp_path / "label.nii.gz", np.stack([ball(0, SHAPE)[1]] * 2, axis=3), AFFINE)
    words = "has the shape 40 x 36 x 5 x 2, several volumes; expected one volume with a value for each "
    assert str(read_label_facts(path, None, LABELS).problem).startswith(words)


@pytest.mark.parametrize(
    ("shift", "words"), [(0.0005, ""), (0.014, ""), (0.03, "voxels up to 0.03 mm apart, 2% of a voxel")]
)
def test_grids_differ_from_one_percent_of_a_voxel(tmp_path: Path, shift: float, words: str) -> None:
    moved = AFFINE.astype(float).copy()
    moved[0, 3] += shift
    assert label(tmp_path, first=0, affine=moved).difference.startswith(words)
    assert bool(label(tmp_path, first=0, affine=moved).difference) == bool(words)
