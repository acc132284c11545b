"""Segmentations that name their segments: of 3D Slicer (.seg.nrrd) and DICOM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.checks import examine
from ssl_medseg.datasets import DataOptions, open_dataset
from ssl_medseg.io import Grid, ImageFile, read_grid, read_label, read_volume
from ssl_medseg.io.dicom_seg import write_dicom_seg
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.segments import placed, read_segments
from ssl_medseg.prediction import find_images, unread_files
from tests.medseg.dicom_series import write_series
from tests.medseg.volumes_on_disk import affine, phantom, write_nifti

pytest.importorskip("SimpleITK")
SHAPE = (21, 34, 7)
AXIAL = affine((0.9, 1.1, 5.0), letters="LPS")
LABELS = LabelMap(("background", "left ventricle", "RV", "MYO"), (0, 5, 2, 3))


def write_slicer(
    path: Path,
    layers: np.ndarray,
    matrix: np.ndarray,
    segments: Mapping[str, tuple[int, int] | None],
) -> Path:
    """Write uint8 ``[layers, X, Y, Z]`` as 3D Slicer does; a segment has its layer and value, which old files lack."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    axes = ["({:.10g},{:.10g},{:.10g})".format(*lps[:3, axis]) for axis in range(3)]
    several = len(layers) > 1
    lines = [
        "NRRD0004", "type: uchar", f"dimension: {3 + several}", "space: left-posterior-superior",
        f"sizes: {f'{len(layers)} ' if several else ''}{' '.join(map(str, layers.shape[1:]))}",
        f"space directions: {'none ' if several else ''}{' '.join(axes)}",
        f"kinds: {'list ' if several else ''}domain domain domain", "endian: little", "encoding: raw",
        "space origin: ({:.10g},{:.10g},{:.10g})".format(*lps[:3, 3]),
    ]  # fmt: skip
    for number, (name, place) in enumerate(segments.items()):
        lines += [f"Segment{number}_ID:=Segment_{number + 1}", f"Segment{number}_Name:={name}"]
        if place is not None:
            lines += [f"Segment{number}_Layer:={place[0]}", f"Segment{number}_LabelValue:={place[1]}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    data = layers.transpose(3, 2, 1, 0)  # the first axis varies fastest
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + np.ascontiguousarray(data.astype(np.uint8)).tobytes())
    return path


def moved(matrix: np.ndarray, by: tuple[int, int, int]) -> np.ndarray:
    start = matrix.copy()
    start[:3, 3] = (matrix @ [*by, 1])[:3]
    return start


def test_segments_are_matched_by_name_and_placed_on_the_image(tmp_path: Path) -> None:
    image = Grid(SHAPE, AXIAL)
    truth = np.zeros(SHAPE, np.uint8)
    truth[4:9, 10:20, 2:5] = 1
    truth[4:6, 12:15, 3] = 3
    part = truth[4:9, 10:20, 2:5]
    stored = np.where(part == 1, 7, np.where(part == 3, 1, 0))[None]  # other values than in the label map
    segments = {"Left_Ventricle": (0, 7), "myo": (0, 1), "RV": (0, 2)}
    file = write_slicer(tmp_path / "a.seg.nrrd", stored, moved(AXIAL, (4, 10, 2)), segments)
    classes, grid = read_label(file, LABELS, image=image)
    np.testing.assert_array_equal(classes, truth)
    assert grid == image
    np.testing.assert_array_equal(read_label(file, LABELS)[0], part)  # without the image, on its own grid
    # The same segmentation with a layer for each segment, as files of 2019 have it.
    layers = np.stack([stored[0] == 7, stored[0] == 1, np.zeros_like(stored[0])]).astype(np.uint8)
    file = write_slicer(tmp_path / "b.seg.nrrd", layers, moved(AXIAL, (4, 10, 2)), dict.fromkeys(segments))
    np.testing.assert_array_equal(read_label(file, LABELS, image=image)[0], truth)
    # The names of a viewer: the values count, as in any label.
    file = write_slicer(tmp_path / "c.seg.nrrd", (stored == 7) * 5, moved(AXIAL, (4, 10, 2)), {"Segment_1": (0, 5)})
    np.testing.assert_array_equal(read_label(file, LABELS, image=image)[0], truth == 1)


@pytest.mark.parametrize("letters", ["RAS", "LPS", "PIL", "SLA"])
def test_the_axes_of_image_and_segmentation_may_differ(letters: str, tmp_path: Path) -> None:
    matrix = affine((0.9, 1.1, 5.0), angles=(20, -35, 50), letters=letters)
    truth = phantom(SHAPE)[1]
    turned = truth.transpose(1, 2, 0)[:, ::-1, ::-1]  # voxel (i, j, k) is voxel `turn @ (i, j, k)` of the image
    turn = np.array([[0, 0, -1, SHAPE[0] - 1], [1, 0, 0, 0], [0, -1, 0, SHAPE[2] - 1], [0, 0, 0, 1.0]])
    for index in np.ndindex(2, 2, 2):
        at = (turn @ [*index, 1]).astype(int)
        assert turned[index] == truth[tuple(at[:3])]
    array, grid = placed(turned, Grid(turned.shape, matrix @ turn), Grid(SHAPE, matrix))
    np.testing.assert_array_equal(array, truth)
    assert grid.shape == SHAPE
    # A third of a voxel away, or with a voxel outside of the image, it stays where it is.
    for change in (moved(matrix @ turn, (0, 0, 0)) + np.array([[0, 0, 0, 0.4]] + [[0] * 4] * 3), matrix @ turn):
        other = np.pad(turned, ((0, 1), (0, 0), (0, 0)), constant_values=1)
        assert placed(other, Grid(other.shape, change), Grid(SHAPE, matrix))[0] is other


def test_what_a_label_cannot_represent_is_refused(tmp_path: Path) -> None:
    layers = np.zeros((2, *SHAPE), np.uint8)
    layers[0, 2:6, 2:6, 1:3], layers[1, 5:8, 5:8, 1:2] = 1, 1
    names = {"RV": (0, 1), "MYO": (1, 1)}
    file = write_slicer(tmp_path / "a.seg.nrrd", layers, AXIAL, names)
    with pytest.raises(UserError, match=r"a.seg.nrrd: segments overlap \(RV and MYO in 1 voxel\)"):
        read_label(file, LABELS)
    layers[1, 5, 5, 1] = 0
    classes, _ = read_label(write_slicer(file, layers, AXIAL, names), LABELS)
    np.testing.assert_array_equal(classes, 2 * layers[0] + 3 * layers[1])
    for name in ("tumour", "Segment_1"):  # a value would be a guess, unless all segments have the names of a viewer
        with pytest.raises(UserError, match=r"the segment (Segment_1|tumour) \(8 voxels\) has no structure"):
            read_label(write_slicer(file, layers, AXIAL, {"RV": (0, 1), name: (1, 1)}), LABELS)
    with pytest.raises(UserError, match=r"the segments links \(32 voxels\), tumour \(8 voxels\) have no structure"):
        read_label(write_slicer(file, layers, AXIAL, {"links": (0, 1), "tumour": (1, 1)}), LABELS)
    with pytest.raises(UserError, match=r"8 voxels with a value that its header gives to no segment"):
        read_label(write_slicer(file, layers, AXIAL, {"RV": (0, 1), "MYO": (1, 4)}), LABELS)
    with pytest.raises(UserError, match=r"lacks a layer that its header names"):
        read_label(write_slicer(file, layers, AXIAL, {"RV": (0, 1), "MYO": (5, 1)}), LABELS)
    file.write_bytes(file.read_bytes().replace(b"Segment0_Layer:=0", b"Segment0_Layer:=x"))
    with pytest.raises(UserError, match=r"has a segment without a valid layer or value"):
        read_label(file, LABELS)


@pytest.mark.parametrize("layers", [1, 2])
def test_labels_of_mitk_are_matched_by_name(layers: int, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    truth = phantom(SHAPE)[1]
    names = {"MYO": 1, 'left \\ "ventricle"': 2, "RV": 3}
    own = LabelMap(("background", 'left \\ "ventricle"', "RV", "MYO"), (0, 1, 2, 3))
    stored = np.array([0, 2, 3, 1], np.uint16)[truth]  # numbered in the order in which they were drawn
    groups: list[dict[str, list[dict[str, object]]]] = [{"labels": []} for _ in range(layers)]
    for name, value in names.items():
        more = {"color": {"type": "ColorProperty", "value": [1.0, 0.5, 0.0]}, "description": "x" * 1000}
        groups[value % layers]["labels"].append({"name": name, "value": value, **more})
    parts = np.stack([np.where(stored % layers == layer, stored, 0) for layer in range(layers)], -1)
    image = sitk.GetImageFromArray(parts.transpose(2, 1, 0, 3) if layers > 1 else stored.T, isVector=layers > 1)
    image.SetMetaData("org.mitk.multilabel.segmentation.labelgroups", json.dumps(groups))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"), True)
    np.testing.assert_array_equal(read_label(tmp_path / "a.nrrd", own)[0], truth)
    file = tmp_path / "a.nrrd"
    file.write_bytes(file.read_bytes().replace(b'"value": 3', b'"value": x'))
    with pytest.raises(UserError, match=r"a.nrrd: has a damaged list of labels"):
        read_label(file, own)


@pytest.mark.parametrize("layers", [1, 2])
def test_labels_of_mitk_before_2023_are_matched_by_name(layers: int, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    truth = phantom(SHAPE)[1]
    own = LabelMap(("background", "left ventricle", "RV & <1>", "MYO"), (0, 1, 2, 3))
    groups = {1: [{"MYO": 3, "left ventricle": 1, "RV &amp; &lt;1&gt;": 2}]}.get(
        layers, [{"MYO": 3}, {"left ventricle": 1, "RV &amp; &lt;1&gt;": 2}]
    )
    parts = np.zeros((*SHAPE, layers), np.uint16)
    texts = {}
    for layer, group in enumerate(groups):  # every layer counts from 1, after a label for what is outside of all labels
        for value, (name, number) in enumerate({"Exterior": 0, **group}.items()):
            properties = {"color": '<color r="1" g="0" b="0"/>', "name": f'<string value="{name}"/>'}
            properties["value"] = f'<int value="{value}"/>'
            lines = (
                f'  <property key="{key}" type="X">\n    {each}\n  </property>' for key, each in properties.items()
            )
            texts[f"org.mitk.label_{layer:03d}_{value:05d}"] = (
                '<?xml version="1.0" encoding="UTF-8"?>\n<Label>\n{}\n</Label>\n'.format("\n".join(lines))
            )
            parts[(truth == number) & (value > 0), layer] = value
    image = sitk.GetImageFromArray(parts.transpose(2, 1, 0, 3) if layers > 1 else parts[..., 0].T, isVector=layers > 1)
    for key, text in {"modality": "org.mitk.image.multilabel", "layers": str(layers), **texts}.items():
        image.SetMetaData(key, text)
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"), True)
    np.testing.assert_array_equal(read_label(tmp_path / "a.nrrd", own)[0], truth)
    file = tmp_path / "a.nrrd"
    file.write_bytes(file.read_bytes().replace(b"</Label>", b"<//abel>"))
    with pytest.raises(UserError, match=r"a.nrrd: has a damaged list of labels"):
        read_label(file, own)


def test_the_header_of_a_segmentation_may_have_long_and_many_lines(tmp_path: Path) -> None:
    truth = phantom(SHAPE)[1]
    names = {"left ventricle": (0, 1), "RV": (0, 2), "MYO": (0, 3), **{f"organ {n}": (0, n) for n in range(4, 250)}}
    file = write_slicer(tmp_path / "a.seg.nrrd", truth[None], AXIAL, names)
    parameters = b"Segmentation_ConversionParameters:=" + b"Oversampling factor|1|Determines the oversampling.&" * 50
    file.write_bytes(file.read_bytes().replace(b"\n\n", b"\n" + parameters + b"\n\n", 1))
    np.testing.assert_array_equal(read_label(file, LABELS)[0], truth)
    file.write_bytes(file.read_bytes()[: -SHAPE[0]])
    with pytest.raises(UserError, match=r"truncated to 4,977 of the 4,998 bytes"):
        read_label(file, LABELS)


def test_a_data_set_of_3d_slicer(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for case, values in (("p1", (1, 2)), ("p2", (2, 1))):
        write_nifti(tmp_path / "images" / f"{case}.nii.gz", phantom(SHAPE, seed=values[0])[0].astype(np.int16), AXIAL)
        part = np.zeros((1, 5, 6, 3), np.uint8)
        part[0, 1:4, 1:5, 1], part[0, 2, 2, 1] = values
        segments = {"prostate": (0, values[0]), "tumour": (0, values[1])}
        write_slicer(tmp_path / "labels" / f"{case}.seg.nrrd", part, moved(AXIAL, (8, 12, 2)), segments)
    data = open_dataset(tmp_path)
    assert data.labels == LabelMap(("background", "prostate", "tumour"), (0, 1, 2))  # the files disagree
    assert not [str(found) for found in examine(tmp_path).findings if found.level == "error"]
    for case in data.cases:
        assert case.label is not None
        classes, _ = read_label(case.label, data.labels, image=read_grid(case.image))
        assert (classes.shape, np.bincount(classes.ravel()).tolist()[1:]) == (SHAPE, [11, 1])
        assert classes[10, 14, 3] == 2
    # A part that does not lie on voxels of the image is reported like any label on another grid.
    write_slicer(tmp_path / "labels" / "p1.seg.nrrd", part, moved(AXIAL, (8, 12, 2)) * 1.1, segments)
    assert "grid" in {found.kind for found in examine(tmp_path).findings}


@pytest.mark.parametrize("letters", ["LPS", "LPI", "PIL"])
def test_a_dicom_segmentation_is_a_label(letters: str, tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    matrix = affine((0.9, 1.1, 5.0), letters=letters)
    image, classes = phantom(SHAPE)
    folder = write_series(tmp_path / "images" / "p1", image.round(), matrix)
    volume = read_volume(ImageFile(folder))
    classes[:, :, :2] = classes[:, :, -1:] = 0  # slices without a segment are not stored
    own = LabelMap(("background", "RV", "MYO", "left ventricle"), (0, 1, 2, 3))
    numbers = np.array([0, 3, 1, 2], np.uint8)  # the segments are in another order than the structures
    write_dicom_seg(numbers[classes], volume, tmp_path / "labels" / "p1.dcm", own)
    assert highdicom.seg.segread(tmp_path / "labels" / "p1.dcm").number_of_frames < 3 * SHAPE[2]
    found, grid = read_label(tmp_path / "labels" / "p1.dcm", LABELS, image=volume.grid)
    np.testing.assert_array_equal(found, classes)
    assert grid == volume.grid
    # On the same voxels, stored by a converter with the rows from the other end.
    flip = np.diag([1.0, -1, 1, 1])
    flip[1, 3] = SHAPE[1] - 1
    found, _ = read_label(tmp_path / "labels" / "p1.dcm", LABELS, image=Grid(SHAPE, volume.affine @ flip))
    np.testing.assert_array_equal(found, classes[:, ::-1])
    # As a data set, with and without a label map, and with the segmentation in a folder.
    data = open_dataset(tmp_path)
    assert (data.names, data.labels) == (("p1",), own)
    (tmp_path / "labels.json").write_text(json.dumps({"RV": 4, "MYO": 5, "left ventricle": 9}))
    (tmp_path / "labels" / "p1").mkdir()
    (tmp_path / "labels" / "p1.dcm").rename(tmp_path / "labels" / "p1" / "seg")
    report = examine(tmp_path)
    assert not [str(found) for found in report.findings if found.level == "error"]
    assert open_dataset(tmp_path).labels.values == (0, 4, 5, 9)
    write_dicom_seg(classes, volume, tmp_path / "labels" / "p1" / "second", own)
    (tmp_path / "labels.json").unlink()
    with pytest.raises(UserError, match=r"^\S+labels/p1: contains 2 Segmentation Storage"):  # not: lacks a label map
        open_dataset(tmp_path)
    assert "2 Segmentation Storage" in str([str(found) for found in examine(tmp_path).findings])
    with pytest.raises(UserError, match=r"contains 2 Segmentation Storage; expected one DICOM segmentation"):
        read_segments(tmp_path / "labels" / "p1")
    with pytest.raises(UserError, match=rf"contains {SHAPE[2]} MR Image Storage; expected one DICOM segmentation"):
        read_segments(folder)


@pytest.mark.parametrize("numbers", [(1, 2, 3), (7, 1, 300)])
def test_a_dicom_label_map_is_a_label(numbers: tuple[int, int, int], tmp_path: Path) -> None:
    """The class of 2024, in which a voxel holds the number of its segment: numbers may have gaps and need two bytes."""
    highdicom = pytest.importorskip("highdicom")
    pydicom = pytest.importorskip("pydicom")

    image, classes = phantom(SHAPE)
    classes[:, :, :2] = 0
    folder = write_series(tmp_path / "images" / "p1", image.round(), affine((0.9, 1.1, 5.0), letters="PIL"))
    volume = read_volume(ImageFile(folder))
    structures = LabelMap(LABELS.names, (0, 1, 2, 3))
    write_dicom_seg(classes, volume, tmp_path / "binary.dcm", structures)
    binary = highdicom.seg.segread(tmp_path / "binary.dcm")
    described = list(binary.SegmentSequence)
    for segment, number in zip(described, numbers, strict=True):
        segment.SegmentNumber = number
    images = [pydicom.dcmread(file) for file in sorted(folder.iterdir())]
    made = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=highdicom.Volume(
            np.array((0, *numbers), np.uint16)[classes].transpose(2, 1, 0),
            np.diag([-1.0, -1, 1, 1]) @ volume.affine[:, [2, 1, 0, 3]],
            coordinate_system="PATIENT",
            frame_of_reference_uid=images[0].FrameOfReferenceUID,
        ),
        segmentation_type="LABELMAP",
        segment_descriptions=sorted(described, key=lambda segment: int(segment.SegmentNumber)),
        series_instance_uid=highdicom.UID(), series_number=9, sop_instance_uid=highdicom.UID(), instance_number=1,
        manufacturer="none", manufacturer_model_name="none", software_versions="1", device_serial_number="1",
    )  # fmt: skip
    (tmp_path / "labels").mkdir()
    made.save_as(tmp_path / "labels" / "p1.dcm")
    found, _ = read_label(tmp_path / "labels" / "p1.dcm", LABELS, image=volume.grid)
    np.testing.assert_array_equal(found, classes)
    (tmp_path / "binary.dcm").unlink()
    assert open_dataset(tmp_path).names == ("p1",)
    del made.SegmentSequence[-1]
    made.save_as(tmp_path / "labels" / "p1.dcm")
    with pytest.raises(UserError, match=r"p1.dcm: contains the value \d+, to which it gives no segment"):
        read_segments(tmp_path / "labels" / "p1.dcm")
    # Beside the images of its series it is no image.
    made.save_as(folder / "label-map")
    assert "1 Label Map Segmentation Storage" in str(read_volume(ImageFile(folder)).warnings)


def test_a_segmentation_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_nifti(tmp_path / "images" / "p1.nii.gz", phantom(SHAPE)[0].astype(np.int16), AXIAL)
    file = write_slicer(tmp_path / "images" / "p1.seg.nrrd", phantom(SHAPE)[1][None], AXIAL, {"RV": (0, 1)})
    found = find_images(tmp_path / "images")
    assert [one.name for one in found] == ["p1"]
    assert unread_files(tmp_path / "images", found) == ["p1.seg.nrrd: a segmentation of 3D Slicer, which is no image"]
    report = examine(tmp_path, opening=DataOptions(allow_unlabelled=True))
    assert [one.case.name for one in report.facts] == ["p1"]
    assert "images/p1.seg.nrrd: a segmentation of 3D Slicer" in str(
        next(one for one in report.findings if one.kind == "not_used")
    )
    with pytest.raises(UserError, match=r"p1.seg.nrrd: is a segmentation of 3D Slicer; expected an image"):
        read_volume(ImageFile(file))
