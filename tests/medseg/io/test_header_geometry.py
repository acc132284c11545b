"""What a header states about size and position of voxels, and what it leaves unknown."""

from __future__ import annotations

import gzip
import json
import re
import resource
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.io import Grid, ImageFile, grid_difference, read_grid, read_label, read_volume, write_mask
from ssl_medseg.io.label_map import LabelMap
from tests.medseg.volumes_on_disk import affine, phantom, write_nifti

LABELS = LabelMap(("background", "a", "b", "c"), (0, 1, 2, 3))
SHAPE = (12, 14, 10)
ISOTROPIC = affine((1.0, 1.0, 1.0), letters="LPS")
PLACES = ("sform_code", "qform_code", "xyzt_units", "pixdim", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x")


def image(path: Path, matrix: np.ndarray = ISOTROPIC, **header: object) -> Path:
    return write_nifti(path, phantom(SHAPE)[0], matrix, **header)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("codes", "unit", "matrix", "known"),
    [
        ((1, 1), "mm", ISOTROPIC, True),
        ((1, 0), "mm", np.eye(4), True),
        ((0, 1), "mm", np.diag([-1.0, -1.0, 1.0, 1.0]), True),
        ((1, 1), "unknown", affine((1.25, 1.25, 3.0)), True),
        ((2, 0), "unknown", np.eye(4), False),
        ((2, 0), "unknown", np.diag([-1.0, -1.0, 1.0, 1.0]), False),
        ((2, 0), "unknown", ISOTROPIC, True),  # somebody has set its origin
        ((0, 0), "mm", affine((1.25, 1.25, 3.0)), False),
        ((0, 0), "unknown", np.eye(4), False),
    ],
)
def test_a_code_and_a_unit_make_the_size_known(
    tmp_path: Path, codes: tuple[int, int], unit: str, matrix: np.ndarray, known: bool
) -> None:
    path = image(tmp_path / "image.nii.gz", matrix, sform=codes[0], qform=codes[1], units=(unit, "sec"))
    volume = read_volume(ImageFile(path))
    assert (volume.grid.size_known, volume.grid.place_known) == (known, known)
    assert bool(volume.warnings) != known
    assert (volume.grid.millilitres is None) != known


def test_the_user_states_a_size_that_the_file_does_not(tmp_path: Path) -> None:
    path = image(tmp_path / "image.nii.gz", affine((0.8, 0.8, 3.0)), sform=0, qform=0)
    assert read_grid(ImageFile(path)).spacing == (1.0, 1.0, 1.0)  # pixdim is not trusted
    stated = read_grid(ImageFile(path, spacing=(1.0, 1.5, 4.0)))
    assert (stated.spacing, stated.size_known, stated.place_known) == ((1.0, 1.5, 4.0), True, False)
    trusted = read_grid(ImageFile(path, trust_pixdim=True))
    assert (trusted.spacing, trusted.size_known) == ((0.8, 0.8, 3.0), True)
    known = image(tmp_path / "known.nii.gz", affine((0.8, 0.8, 3.0)))
    assert read_grid(ImageFile(known, spacing=(1.0, 1.5, 4.0), trust_pixdim=True)).spacing == (0.8, 0.8, 3.0)


@pytest.mark.parametrize(("unit", "millimetres"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0)])
def test_other_units_are_converted_and_masks_keep_the_file_s_own(tmp_path: Path, unit: str, millimetres: float) -> None:
    expected = affine((0.9, 1.1, 4.0), angles=(10, 5, -20))
    stored = np.diag([1 / millimetres] * 3 + [1.0]) @ expected
    path = image(tmp_path / "image.nii.gz", stored, units=(unit, "sec"))
    volume = read_volume(ImageFile(path))
    np.testing.assert_allclose(volume.affine, expected, rtol=1e-5, atol=1e-4)
    write_mask(phantom(SHAPE)[1], volume, tmp_path / "mask.nii.gz", LABELS)
    before, after = (nibabel.load(file).header for file in (path, tmp_path / "mask.nii.gz"))
    for field in PLACES:
        np.testing.assert_array_equal(after[field], before[field], err_msg=field)
    assert grid_difference(read_label(tmp_path / "mask.nii.gz", LABELS)[1], volume.grid) == ""


def test_a_pixdim_that_contradicts_the_sform_is_said(tmp_path: Path) -> None:
    path = image(tmp_path / "image.nii", affine((0.8, 0.8, 3.0)), qform=0)
    assert read_volume(ImageFile(path)).warnings == ()
    content = bytearray(path.read_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    header["pixdim"][1:4] = 1
    content[:348] = header.binaryblock
    path.write_bytes(bytes(content))
    volume = read_volume(ImageFile(path))
    np.testing.assert_allclose(volume.grid.spacing, (0.8, 0.8, 3.0), rtol=1e-6)
    assert "different voxel sizes, 0.8 x 0.8 x 3 mm and 1 x 1 x 1; the sform is used" in volume.warnings[0]


def test_a_unit_that_is_none_of_length_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path / "image.nii.gz")
    opened = nibabel.load(path)
    opened.header["xyzt_units"] = 5
    nibabel.save(nibabel.Nifti1Image(np.asarray(opened.dataobj), opened.affine, opened.header), path)
    changed = bytearray(gzip.decompress(path.read_bytes()))
    changed[123] = 5  # xyzt_units; nibabel may have corrected it
    path.write_bytes(gzip.compress(bytes(changed)))
    with pytest.raises(UserError, match=r"image\.nii\.gz.*unit of length with code 5"):
        read_volume(ImageFile(path))


@pytest.mark.parametrize("size", [0.0, -1.5, np.nan, np.inf])
def test_sizes_that_nibabel_repairs_are_refused(tmp_path: Path, size: float) -> None:
    path = image(tmp_path / "image.nii.gz")
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[80 + 4 * 2 : 80 + 4 * 2 + 4] = np.float32(size).tobytes()  # pixdim[2]; pixdim starts at byte 76
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(UserError, match=r"image\.nii\.gz: the header states a voxel size of .*pixdim"):
        read_volume(ImageFile(path))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_voxels_that_begin_inside_of_the_header_are_refused(tmp_path: Path, ending: str) -> None:
    path = image(tmp_path / f"image{ending}")
    unpack, pack = (gzip.decompress, gzip.compress) if ending == ".nii.gz" else (bytes, bytes)
    content = bytearray(unpack(path.read_bytes()))
    content[108:112] = np.float32(0).tobytes()  # vox_offset
    path.write_bytes(pack(bytes(content)))
    with pytest.raises(UserError, match=r"voxels begin at byte 0 \(vox_offset\), .*; expected 352 or more"):
        read_volume(ImageFile(path))


@pytest.mark.parametrize("sides", [(0.005, 1.0, 1.0), (1.0, 1.0, 60.0), (1000.0, 1000.0, 3000.0)])
def test_sizes_that_no_scanner_makes_are_refused(tmp_path: Path, sides: tuple[float, float, float]) -> None:
    path = image(tmp_path / "image.nii.gz", affine(sides))
    with pytest.raises(UserError, match=r"image\.nii\.gz: the header states a voxel size of .* mm \(unit: mm\)"):
        read_grid(ImageFile(path))


def test_a_flat_file_gets_a_flat_mask(tmp_path: Path) -> None:
    array, classes = phantom((20, 24, 1))
    for name, shape in {"flat": (20, 24), "one slice": (20, 24, 1)}.items():
        path = write_nifti(tmp_path / f"{name}.nii.gz", array.reshape(shape), affine((1.0, 1.0, 0.001)))
        volume = read_volume(ImageFile(path))
        assert volume.array.shape == (20, 24, 1)
        write_mask(classes, volume, tmp_path / "mask.nii.gz", LABELS)
        assert nibabel.load(tmp_path / "mask.nii.gz").shape == shape
        np.testing.assert_array_equal(read_label(tmp_path / "mask.nii.gz", LABELS)[0], classes)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.Nifti1Pair])
@pytest.mark.parametrize("order", ["<", ">"])
def test_versions_byte_orders_and_pairs_give_the_same_volume_and_place_of_the_mask(
    tmp_path: Path, kind: type, order: str
) -> None:
    array, classes = phantom(SHAPE)
    # Half a turn about z has a quaternion whose rounding once made a NIfTI-2 file unreadable.
    matrix = affine((0.71, 0.93, 3.3), angles=(11, -7, 23), letters="LPS")
    opened = kind(array.astype(f"{order}i2"), matrix, kind.header_class(endianness=order))
    opened.set_sform(matrix, 1)
    opened.set_qform(matrix, 1)
    opened.header.set_xyzt_units("mm")
    path = tmp_path / ("image.img" if kind is nibabel.Nifti1Pair else "image.nii.gz")
    nibabel.save(opened, path)
    volume = read_volume(ImageFile(path))
    np.testing.assert_array_equal(volume.array, array.astype(np.int16))
    np.testing.assert_allclose(volume.affine, matrix, atol=1e-5)
    write_mask(classes, volume, tmp_path / "mask.nii.gz", LABELS)
    found, grid = read_label(tmp_path / "mask.nii.gz", LABELS)
    np.testing.assert_array_equal(found, classes)
    assert grid_difference(grid, volume.grid) == ""
    sitk = pytest.importorskip("SimpleITK")
    read = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read).T, classes)
    np.testing.assert_allclose(np.array(read.GetSpacing()), volume.spacing, rtol=1e-5)


def _trailing(packed: bytes) -> bytes:
    return packed + b"garbage"


def _members(packed: bytes) -> bytes:
    raw = gzip.decompress(packed)
    return gzip.compress(raw[:500]) + gzip.compress(raw[500:])


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("a.nii.gz", _members, ""),
        ("a.nii.gz", lambda packed: packed + bytes(512), ""),
        ("a.nii.gz", _trailing, "followed by 7 bytes that are not gzip-compressed"),
        ("a.nii.gz", gzip.compress, "is gzip-compressed twice: unpack it once"),
        ("a.nii.gz", gzip.decompress, r"is not gzip-compressed: rename it to a\.nii"),
        ("a.nii", bytes, r"is gzip-compressed.*rename it to a\.nii\.gz"),
        ("a.nii.gz", lambda _: b"", "is empty"),
        ("a.nii.gz", lambda packed: bytes(len(packed)), "filled with zeros"),
        ("a.nii.gz", lambda _: b"PK\x03\x04" + bytes(2000), "a ZIP archive: unpack it"),
        ("a.nii", lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        ("a.nii", lambda _: b"<!DOCTYPE html><html>not found</html>", "a web page"),
        ("a.nii", lambda _: bytes(128) + b"DICM" + bytes(500), "a DICOM file"),
    ],
)
def test_what_a_file_really_is_is_said(tmp_path: Path, name: str, change: object, words: str) -> None:
    path = image(tmp_path / "b.nii.gz")
    (tmp_path / name).write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    if words:
        with pytest.raises(UserError, match=words):
            read_volume(ImageFile(tmp_path / name))
    else:
        np.testing.assert_array_equal(read_volume(ImageFile(tmp_path / name)).array, phantom(SHAPE)[0])


def test_a_label_without_a_place_is_compared_by_its_shape_only_with_images_without_one() -> None:
    placed, lost = Grid(SHAPE, ISOTROPIC), Grid(SHAPE, np.diag([1.0, 1.0, 2.0, 1.0]), False, False)
    assert grid_difference(lost, placed) == "it states no position"
    assert grid_difference(placed, lost) == "the image states no position"
    assert grid_difference(lost, Grid(SHAPE, np.eye(4), False, False)) == ""
    assert grid_difference(Grid(SHAPE, ISOTROPIC, False, False), placed) == ""  # the same affine, without a unit
    assert "voxels against" in grid_difference(lost, Grid((12, 14, 9), np.eye(4), False, False))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_itk_files_say_whether_they_know_the_size(tmp_path: Path, ending: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    path = tmp_path / f"image{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 20, 24), np.int16)), str(path))
    assert read_grid(ImageFile(path)).size_known
    if ending == ".nrrd":
        path.write_bytes(
            b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nendian: little\nencoding: raw\n\n" + bytes(48)
        )
        assert not read_grid(ImageFile(path)).size_known
        assert read_grid(ImageFile(path, spacing=(1.0, 1.0, 3.0))).spacing == (1.0, 1.0, 3.0)


def test_a_small_file_that_unpacks_to_much_is_refused_in_little_memory(tmp_path: Path) -> None:
    """A file of 2 kB once took 6.9 GB of memory."""
    image = nibabel.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4))
    raw = image.to_bytes()
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(raw + bytes(300 << 20), compresslevel=9))
    tracemalloc.start()
    try:
        with pytest.raises(
            UserError, match=r"bomb\.nii\.gz: unpacks to more than the 472 bytes that its header states"
        ):
            read_volume(ImageFile(path))
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    path.write_bytes(gzip.compress(raw + bytes(1000)))  # a little more than the voxels is no bomb
    assert read_volume(ImageFile(path)).array.shape == (4, 5, 6)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_compressed_itk_files_are_not_unpacked_beyond_the_size_of_their_header(tmp_path: Path, ending: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    path = tmp_path / f"bomb{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 5, 6), np.int16)), str(path), True)
    content = path.read_bytes()
    if ending == ".nrrd":
        start = content.index(b"\n\n") + 2
        path.write_bytes(content[:start] + gzip.compress(bytes(1 << 30), 1))
    else:
        start = content.index(b"ElementDataFile = LOCAL\n") + 24
        packed = zlib.compress(bytes(1 << 30), 1)
        size = re.search(rb"CompressedDataSize = \d+", content[:start])
        assert size is not None
        path.write_bytes(content[:start].replace(size[0], b"CompressedDataSize = %d" % len(packed)) + packed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"its compressed voxels are more than the 240 bytes that its size allows"):
        read_volume(ImageFile(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # kB


@pytest.mark.parametrize("packed", [True, False], ids=["compressed", "raw"])
@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd", ".nii", ".nii.gz"])
def test_a_header_with_fewer_slices_than_the_file_holds_is_refused(tmp_path: Path, ending: str, packed: bool) -> None:
    """ITK and nibabel read the first slices of such a file and say nothing."""
    path = tmp_path / f"case{ending}"
    voxels = np.random.default_rng(0).integers(1, 900, (4, 5, 6)).astype(np.int16)
    if ".nii" in ending:
        if packed != (ending == ".nii.gz"):
            pytest.skip("the ending of NIfTI states whether it is compressed")
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
        unpacked = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        changed = unpacked.replace(struct.pack("<4h", 3, 4, 5, 6), struct.pack("<4h", 3, 4, 5, 5), 1)
        padded, cut = unpacked + bytes(1000), changed
        pack = gzip.compress if packed else bytes
        contents = [pack(content) for content in (padded, cut)]
    else:
        sitk = pytest.importorskip("SimpleITK")
        sitk.WriteImage(sitk.GetImageFromArray(voxels.T), str(path), packed)
        content = path.read_bytes()
        contents = [content, re.sub(rb"(sizes: |DimSize = )4 5 6", rb"\g<1>4 5 5", content)]
    assert contents[0] != contents[1]
    path.write_bytes(contents[0])
    assert np.array_equal(read_volume(ImageFile(path)).array, voxels)
    path.write_bytes(contents[1])
    with pytest.raises(UserError, match=r"case.*(more than the 200 bytes|40 bytes follow the \d+ that its)"):
        read_volume(ImageFile(path))


@pytest.mark.parametrize("ending", ["mgz", "mgh"])
def test_the_geometry_of_mgh_is_unknown_without_its_flag(tmp_path: Path, ending: str) -> None:
    matrix = affine((1.5, 1.5, 4.0), letters="LPS")
    path = tmp_path / f"image.{ending}"
    nibabel.save(nibabel.MGHImage(phantom(SHAPE)[0].astype(np.float32), matrix), path)
    stated = read_volume(ImageFile(path))
    np.testing.assert_allclose(stated.affine, matrix, atol=1e-5)
    assert stated.grid.size_known
    assert stated.grid.place_known
    assert not stated.warnings
    json.dumps(stated.grid.shape)  # run folders store it
    content = bytearray(gzip.decompress(path.read_bytes()) if ending == "mgz" else path.read_bytes())
    content[28:30] = b"\0\0"  # goodRASFlag
    path.write_bytes(gzip.compress(content) if ending == "mgz" else content)
    bare = read_volume(ImageFile(path))
    np.testing.assert_array_equal(bare.array, stated.array)
    assert not bare.grid.size_known
    assert not bare.grid.place_known
    assert bare.warnings == ("the file states no position: the patient's left and right are unknown",)
