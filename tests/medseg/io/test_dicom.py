"""DICOM series as volumes, and segmentations that overlay on them."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from contrastive_core.errors import UserError
from ssl_medseg.datasets import DataOptions
from ssl_medseg.io import grid_difference, read_label, read_volume, write_mask
from ssl_medseg.io.dicom_seg import missing_for_seg, write_dicom_seg
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import ImageFile
from ssl_medseg.prediction import find_images, unread_files
from tests.medseg.volumes_on_disk import affine, phantom

highdicom = pytest.importorskip("highdicom")
import pydicom  # noqa: E402
from pydicom.dataelem import RawDataElement  # noqa: E402
from pydicom.fileset import FileSet  # noqa: E402
from pydicom.tag import Tag  # noqa: E402
from pydicom.uid import (  # noqa: E402
    BasicTextSRStorage,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
)

from tests.medseg.dicom_series import write_series  # noqa: E402 - needs pydicom

LABELS = LabelMap(("background", "LV", "RV", "MYO"), (0, 500, 600, 205))
SHAPE = (21, 34, 7)
GEOMETRIES = {
    "axial": affine((0.9, 1.1, 5.0), letters="LPS"),
    # A left-handed stack: slices counted against their normal.
    "feet first": affine((0.9, 1.1, 5.0), letters="LPI"),
    "sagittal": affine((1.2, 1.2, 4.0), letters="PIL"),
    "oblique": affine((1.25, 1.4, 8.0), angles=(20, -35, 50), letters="LPS"),
}


def in_file_order(array: np.ndarray, matrix: np.ndarray, volume) -> np.ndarray:
    """Return the array as the reader should give it: stacks may be counted from the other end, at the same places."""
    if grid_difference(volume.grid, type(volume.grid)(array.shape, matrix)) == "":
        return array
    flipped = matrix @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, array.shape[2] - 1], [0, 0, 0, 1.0]])
    assert grid_difference(volume.grid, type(volume.grid)(array.shape, flipped)) == ""
    return array[:, :, ::-1]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_series_lies_where_its_slices_say(tmp_path: Path, name: str) -> None:
    image, _ = phantom(SHAPE)
    folder = write_series(tmp_path / "series", image.round(), GEOMETRIES[name], slope=0.5)
    (folder / "notes.txt").write_text("not an image")
    volume = read_volume(ImageFile(folder))
    np.testing.assert_allclose(volume.array, in_file_order(image.round() / 2, GEOMETRIES[name], volume))
    assert volume.array.dtype == np.float32


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_segmentation_overlays_on_its_series(tmp_path: Path, name: str) -> None:
    image, classes = phantom(SHAPE)
    folder = write_series(tmp_path / "series", image.round(), GEOMETRIES[name])
    volume = read_volume(ImageFile(folder))
    classes = in_file_order(classes, GEOMETRIES[name], volume).copy()
    classes[classes == 2] = 1  # RV is nowhere: its segment exists and is empty
    write_dicom_seg(classes, volume, tmp_path / "seg.dcm", LABELS)

    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert [seg.get_segment_description(n).segment_label for n in (1, 2, 3)] == ["LV", "RV", "MYO"]
    # Read by highdicom, with the positions the frames themselves carry, and laid on the volume's voxels by place.
    read = seg.get_volume(combine_segments=True, rescale_fractional=False, allow_missing_positions=True)
    places = np.argwhere(read.array > 0)
    millimetres = (places @ read.get_affine("RAS")[:3, :3].T) + read.get_affine("RAS")[:3, 3]
    voxels = (millimetres - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T
    np.testing.assert_allclose(voxels, voxels.round(), atol=1e-3)
    found = np.zeros_like(classes)
    found[tuple(voxels.round().astype(int).T)] = read.array[tuple(places.T)]
    np.testing.assert_array_equal(found, classes)
    referenced = {str(uid) for _, _, uid in seg.get_source_image_uids()}
    assert referenced == {str(ds.SOPInstanceUID) for ds in _datasets(folder)}
    assert seg.PatientID == "42"


@pytest.mark.parametrize("characters", [None, "ISO_IR 100", "GB18030", ["", "ISO 2022 IR 87"]])
@pytest.mark.parametrize(
    "names", [("prostate", "bladder"), ("前列腺", "мочевой пузырь"), ("left " * 20, "right " * 20)]
)
def test_a_segmentation_keeps_names_in_any_script(
    tmp_path: Path, characters: str | list[str] | None, names: tuple[str, ...]
) -> None:
    """Characters outside of the character set of the series were replaced by question marks."""
    patient = {"ISO_IR 100": "Müller^Jörg", "GB18030": "王^小东"}.get(str(characters), "Doe^Jane")
    if isinstance(characters, list):
        patient = "Yamada^Tarou=山田^太郎"
    image, classes = phantom(SHAPE)
    folder = write_series(tmp_path / "series", image.round(), GEOMETRIES["axial"])
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        if characters:
            dataset.SpecificCharacterSet = characters
        dataset.PatientName = patient
        dataset.save_as(file)
    volume = read_volume(ImageFile(folder))
    labels = LabelMap(("background", *(name.strip() for name in names)), (0, 1, 2))
    classes = np.minimum(in_file_order(classes, GEOMETRIES["axial"], volume), 2).astype(np.uint8)
    write_dicom_seg(classes, volume, tmp_path / "seg.dcm", labels)
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == [
        name[:64].strip() for name in labels.structures
    ]
    assert str(seg.PatientName) == patient
    np.testing.assert_array_equal(read_label(tmp_path / "seg.dcm", labels, image=volume.grid)[0], classes)


def test_an_empty_mask_is_still_a_segmentation(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", phantom(SHAPE)[0].round(), GEOMETRIES["axial"])
    volume = read_volume(ImageFile(folder))
    write_dicom_seg(np.zeros(SHAPE, np.uint8), volume, tmp_path / "seg.dcm", LABELS)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert seg.number_of_segments == 3
    assert not seg.pixel_array.any()


def test_a_nifti_mask_of_a_series_has_its_affine_in_both_forms(tmp_path: Path) -> None:
    import nibabel

    image, classes = phantom(SHAPE)
    volume = read_volume(ImageFile(write_series(tmp_path / "series", image.round(), GEOMETRIES["oblique"])))
    write_mask(classes, volume, tmp_path / "mask.nii.gz", LABELS)
    written = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(written.get_qform(), volume.affine, atol=1e-4)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (1, 1)
    found, grid = read_label(tmp_path / "mask.nii.gz", LABELS)
    np.testing.assert_array_equal(found, classes)
    np.testing.assert_allclose(grid.affine, volume.affine, atol=1e-5)


@pytest.mark.parametrize("letters", ["LPS", "LAS", "RAS", "SRA"])  # ITK, dcm2niix, nibabel's canonical order, another
@pytest.mark.parametrize("name", GEOMETRIES)
def test_labels_of_a_series_may_be_stored_in_another_order(tmp_path: Path, name: str, letters: str) -> None:
    import nibabel

    image, classes = phantom(SHAPE)
    volume = read_volume(ImageFile(write_series(tmp_path / "series", image.round(), GEOMETRIES[name])))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(volume.affine), nibabel.orientations.axcodes2ornt(letters)
    )
    theirs = nibabel.Nifti1Image(LABELS.lookup[classes], volume.affine).as_reoriented(turn)
    theirs.set_sform(theirs.affine, code=1)
    nibabel.save(theirs, tmp_path / "label.nii.gz")
    found, grid = read_label(tmp_path / "label.nii.gz", LABELS, image=volume.grid)
    np.testing.assert_array_equal(found, classes)
    assert grid_difference(grid, volume.grid) == ""
    # The same label one slice further lies elsewhere.
    theirs.set_sform(theirs.affine + np.pad(volume.affine[:3, 2:3], ((0, 1), (3, 0))), code=1)
    nibabel.save(theirs, tmp_path / "label.nii.gz")
    _, grid = read_label(tmp_path / "label.nii.gz", LABELS, image=volume.grid)
    assert grid_difference(grid, volume.grid)


def test_missing_doubled_and_foreign_slices_are_said(tmp_path: Path) -> None:
    image = phantom(SHAPE)[0].round()
    with pytest.raises(
        UserError, match="2 slices seem to be missing: the 5 images are 5 mm apart, with gaps after number 2"
    ):
        read_volume(ImageFile(write_series(tmp_path / "gap", image, GEOMETRIES["axial"], leave_out=(2, 3))))
    twice = write_series(tmp_path / "twice", image, GEOMETRIES["axial"])
    shutil.copy(twice / "IM0000", twice / "copy")
    with pytest.raises(UserError, match=r"8 images at 7 positions.*They are copies of the same images"):
        read_volume(ImageFile(twice))
    other = write_series(tmp_path / "other", image, GEOMETRIES["axial"])
    shutil.copy(other / "IM0000", tmp_path / "gap" / "other")
    with pytest.raises(UserError, match="2 DICOM series with 5, 1 images"):
        read_volume(ImageFile(tmp_path / "gap"))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "readme").write_text("nothing here")
    with pytest.raises(UserError, match="no DICOM images"):
        read_volume(ImageFile(tmp_path / "none"))


def test_files_that_are_cut_off_are_said(tmp_path: Path) -> None:
    """A missing last slice leaves no gap, so a file without its image must be reported."""
    folder = write_series(tmp_path / "series", phantom(SHAPE)[0].round(), GEOMETRIES["axial"])
    last = max(_datasets(folder), key=lambda dataset: float(dataset.ImagePositionPatient[2])).filename
    file = Path(last)
    whole = file.read_bytes()
    place = whole.index(b"\x28\x00\x10\x00")  # the tag of Rows
    for size, words in (
        (0, "is empty or damaged, expected a DICOM file"),
        (place, "ends before its image, so the file is cut off"),
        (len(whole) - 500, rf"the pixels of {file.name} cannot be read.*damaged"),
    ):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=words):
            read_volume(ImageFile(folder))
    file.write_bytes(whole)
    (folder / "text.dcm").write_text("no image")
    with pytest.raises(UserError, match=r"text\.dcm: is empty or damaged"):
        read_volume(ImageFile(folder))
    (folder / "text.dcm").unlink()
    report = _datasets(folder)[0]
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(report, tag)
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID = BasicTextSRStorage
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    assert read_volume(ImageFile(folder)).array.shape == SHAPE


def _datasets(folder: Path) -> list:
    import pydicom

    return [pydicom.dcmread(file) for file in folder.iterdir() if file.name.startswith("IM")]


def edited(folder: Path, change) -> Path:
    """Return a series whose images were changed by `change(dataset, position in the stack)`."""
    images = sorted(_datasets(folder), key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    for place, dataset in enumerate(images):
        change(dataset, place)
        dataset.save_as(dataset.filename)
    return folder


def series(tmp_path: Path, name: str = "series") -> Path:
    return write_series(tmp_path / name, phantom(SHAPE)[0].round(), GEOMETRIES["axial"])


def _tilt(dataset, place: int) -> None:
    x, y, z = (float(v) for v in dataset.ImagePositionPatient)
    dataset.ImagePositionPatient = [x, y + 0.6 * place, z]


def _uneven(dataset, place: int) -> None:
    if place == 3:
        x, y, z = (float(v) for v in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x, y, z + 1.5]


def _pixels(dataset, place: int) -> None:
    if place == 3:
        dataset.PixelSpacing = ["2.6", "2.6"]


def _plane(dataset, place: int) -> None:
    if place == 3:
        dataset.ImageOrientationPatient = ["1", "0", "0", "0", "0", "-1"]


def _mosaic(dataset, place: int) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]


def _only_mosaic(dataset, place: int) -> None:
    dataset.ImageType = "MOSAIC"


def _frames(dataset, place: int) -> None:
    if place == 3:
        dataset.NumberOfFrames = 2


def _palette(dataset, place: int) -> None:
    if place == 3:
        dataset.PhotometricInterpretation = "PALETTE COLOR"


def _high(dataset, place: int) -> None:
    if place == 3:
        dataset.BitsStored, dataset.HighBit = 12, 15


def _short(dataset, place: int) -> None:
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0.9, 0]


def _skewed(dataset, place: int) -> None:
    dataset.ImageOrientationPatient = [1, 0, 0, 0.1, 0.995, 0]


def _without(tag: str):
    def change(dataset, place: int) -> None:
        if place == 3:
            delattr(dataset, tag)

    return change


def _raw(name: str, value: bytes):
    def change(dataset, place: int) -> None:
        if place == 3:
            tag = Tag(name)
            dataset[tag] = RawDataElement(tag, "DS", len(value), value, 0, False, True)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_tilt, r"shifted sideways by 0\.6 mm .* from IM\d+ to IM\d+, a tilt of 7°"),
        (_uneven, r"unevenly spaced, with deviations of up to 1\.\d+ mm \(NAME"),
        (_pixels, r"PixelSpacing is 2\.6 x 2\.6 in NAME and 1\.1 x 0\.9 in the others"),
        (_plane, r"1 of 7 images have a different orientation from the others \(NAME\)"),
        (_mosaic, r"7 of 7 images are mosaics"),
        (_only_mosaic, r"7 of 7 images are mosaics"),
        (_frames, r"7 images, of which 1 are multi-frame \(NAME\)"),
        (_palette, "NAME contains the numbers of colours in a palette, expected one intensity per voxel"),
        (_high, "HighBit of NAME is 15 with 12 stored bits; expected 11"),
        (_short, r"\(1, 0, 0, 0, 0\.9, 0\) does not consist of two perpendicular unit vectors"),
        (_skewed, r"does not consist of two perpendicular unit vectors"),
        (_raw("PixelSpacing", b"2,6\\2,6 "), r"PixelSpacing of NAME is invalid; expected 2 numbers above 0"),
        (_raw("PixelSpacing", b"0\\0 "), r"PixelSpacing of NAME is invalid; expected 2 numbers above 0"),
        (_raw("ImagePositionPatient", b"nan\\1\\2 "), r"ImagePositionPatient of NAME is invalid; expected 3 numbers,"),
        (_raw("ImageOrientationPatient", b"1\\0\\0 "), r"ImageOrientationPatient of NAME is invalid; expected 6"),
        (_raw("PixelSpacing", b""), r"NAME lacks PixelSpacing"),
        *((_without(tag), rf"NAME lacks {tag}") for tag in ("ImagePositionPatient", "PixelSpacing", "Rows")),
    ],
)
def test_a_stack_that_is_no_volume_is_refused_with_its_files(tmp_path: Path, change, words: str) -> None:
    folder = edited(series(tmp_path), change)
    images = sorted(_datasets(series(tmp_path, "order")), key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    if "Rows" in words:
        words = "NAME: ends before its image"
    with pytest.raises(UserError, match=words.replace("NAME", Path(images[3].filename).name)):
        read_volume(ImageFile(folder))


@pytest.mark.parametrize(
    ("tag", "values", "words"),
    [
        ("EchoTime", (10, 80), "EchoTime is 10 in IM.* and 80 in IM"),
        ("DiffusionBValue", (0.0, 1000.0), "DiffusionBValue is 0 in IM.* and 1000 in IM"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "ImageType is [MP] in IM"),
        ("ImageType", (["DERIVED", "PRIMARY", "DIXON", "WATER"], ["DERIVED", "PRIMARY"]), "ImageType is .*WATER"),
        ("EchoTime", (10, 10.2), ""),
        ("ImageType", ("PRIMARY", "ORIGINAL"), ""),  # a single value is a text, whose letters are no values
        ("ImageType", (["ORIGINAL", "PRIMARY", "AXIAL"], ["ORIGINAL", "SECONDARY", "AXIAL"]), ""),
    ],
)
def test_two_contrasts_are_no_volume_also_at_different_positions(
    tmp_path: Path, tag: str, values: tuple, words: str
) -> None:
    places = itertools.count()
    folder = edited(series(tmp_path), lambda dataset, place: setattr(dataset, tag, values[next(places) % 2]))
    if words:
        with pytest.raises(UserError, match=words):
            read_volume(ImageFile(folder))
    else:
        read_volume(ImageFile(folder))


@pytest.mark.parametrize("tag", ["PatientID", "StudyInstanceUID", "SeriesNumber"])
def test_images_of_two_patients_under_an_empty_series_uid_are_not_interleaved(tmp_path: Path, tag: str) -> None:
    def anonymised(dataset, place: int) -> None:
        dataset.SeriesInstanceUID = ""
        if place % 2:
            setattr(dataset, tag, "7")

    with pytest.raises(UserError, match=f"SeriesInstanceUID, which is empty, but 2 different values of {tag}"):
        read_volume(ImageFile(edited(series(tmp_path), anonymised)))


def _multi_frame(folder: Path, images: list) -> Path:
    """Write an enhanced image, which is displayed inverted and states real-world values, from single-frame images."""
    import highdicom
    from pydicom.dataset import Dataset

    folder.mkdir()
    uids = {name: highdicom.UID() for name in ("series_instance_uid", "sop_instance_uid")}
    image = highdicom.legacy.LegacyConvertedEnhancedMRImage(images, series_number=9, instance_number=1, **uids)
    image.PhotometricInterpretation = "MONOCHROME1"
    del image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    values = Dataset()
    values.RealWorldValueIntercept, values.RealWorldValueSlope = 0.0, 3.0
    values.RealWorldValueFirstValueMapped, values.RealWorldValueLastValueMapped = 0, 4000
    image.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence = [values]
    image.save_as(folder / "image.dcm")
    return folder


@pytest.mark.parametrize(
    ("group", "tag", "values"),
    [
        ("MREchoSequence", "EffectiveEchoTime", (10.0, 80.0)),
        ("MRDiffusionSequence", "DiffusionBValue", (0.0, 1000.0)),
        ("MRImageFrameTypeSequence", "FrameType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])),
    ],
)
def test_frames_of_two_contrasts_are_no_volume(tmp_path: Path, group: str, tag: str, values: tuple) -> None:
    file = next(_multi_frame(tmp_path / "multi", _datasets(series(tmp_path))).iterdir())
    image = pydicom.dcmread(file)
    for number, frame in enumerate(image.PerFrameFunctionalGroupsSequence):
        item = pydicom.Dataset()
        setattr(item, tag, values[number % 2])
        setattr(frame, group, [item])
    image.save_as(file)
    with pytest.raises(UserError, match=f"{tag} is .* in frame .* and .* in frame .*; expected images of one contrast"):
        read_volume(ImageFile(file))


@pytest.mark.parametrize("count", [7, 1])
def test_a_multi_frame_image_has_the_intensities_of_its_slices(tmp_path: Path, count: int) -> None:
    images = _datasets(series(tmp_path))[:count]
    for dataset in images:
        shutil.copy(dataset.filename, (tmp_path / "few").mkdir(exist_ok=True) or tmp_path / "few")
    expected = read_volume(ImageFile(tmp_path / "few"))
    found = read_volume(ImageFile(_multi_frame(tmp_path / "enhanced", images)))
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)


@pytest.mark.parametrize("by_frame", ["PixelMeasures", "PlaneOrientation", ""])
def test_sizes_and_orientations_stated_by_frame_place_an_image_and_its_segmentation(
    tmp_path: Path, by_frame: str
) -> None:
    from highdicom.seg import segread

    folder = series(tmp_path)
    expected, classes = read_volume(ImageFile(folder)), phantom(SHAPE)[1]
    file = _multi_frame(tmp_path / "enhanced", _datasets(folder)) / "image.dcm"
    image = pydicom.dcmread(file)
    (shared,) = image.SharedFunctionalGroupsSequence
    for name in [group.keyword for group in shared if group.keyword.startswith(by_frame)]:
        for frame in image.PerFrameFunctionalGroupsSequence:
            setattr(frame, name, shared[name].value)
        delattr(shared, name)
    if not by_frame:
        image.SharedFunctionalGroupsSequence = []
    image.save_as(file)
    volume = read_volume(ImageFile(file.parent))
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)
    write_dicom_seg(classes, volume, tmp_path / "mask.dcm", LABELS)
    np.testing.assert_array_equal(read_label(tmp_path / "mask.dcm", LABELS, image=expected.grid)[0], classes)
    written = segread(tmp_path / "mask.dcm")
    assert (
        written.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
        == image.SOPInstanceUID
    )


@pytest.mark.parametrize("signed", [0, 1])
def test_bits_above_the_stored_ones_are_no_intensity(tmp_path: Path, signed: int) -> None:
    rng = np.random.default_rng(0)
    values = {}

    def twelve(dataset, place: int) -> None:
        values[place] = rng.integers(-2048 * signed, 4096 - 2048 * signed, (dataset.Rows, dataset.Columns))
        # An overlay in the highest bit of some pixels; negative numbers of 12 bits.
        pixels = (values[place] & 0xFFF) | (rng.integers(0, 2, values[place].shape) << 15)
        dataset.PixelData = pixels.astype("<u2").tobytes()
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, signed

    folder = edited(series(tmp_path), twelve)
    enhanced = _multi_frame(tmp_path / "enhanced", _datasets(folder))
    for source in (folder, enhanced):
        found = read_volume(ImageFile(source)).array
        np.testing.assert_array_equal(found, np.stack([values[z].T for z in range(len(values))][::-1], axis=-1))


def test_small_jitter_is_evened_and_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def jitter(dataset, place: int) -> None:
        dataset.ImagePositionPatient = [
            f"{float(v) + rng.uniform(-0.05, 0.05):.5f}" for v in dataset.ImagePositionPatient
        ]

    expected = read_volume(ImageFile(series(tmp_path, "as it was")))
    found = read_volume(ImageFile(edited(series(tmp_path), jitter)))
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_allclose(found.affine, expected.affine, atol=0.1)
    assert "were corrected to equal distances" in found.warnings[0]


def test_every_slice_has_a_slope_of_its_own(tmp_path: Path) -> None:
    def slope(dataset, place: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{1 + 0.1 * place:.3g}", -5

    plain = read_volume(ImageFile(series(tmp_path, "plain")))
    scaled = read_volume(ImageFile(edited(series(tmp_path), slope)))
    np.testing.assert_allclose(scaled.array, plain.array * (1 + 0.1 * np.arange(7)[::-1]) - 5, rtol=1e-5)


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [("", "", (1, 0)), ("0", "0", (1, 0)), ("2", None, (2, 0)), (None, "-5", (1, -5)), ("", "-5", (1, -5))],
)
def test_a_slope_or_intercept_that_is_missing_counts_as_in_itk(tmp_path: Path, slope, intercept, expected) -> None:
    sitk = pytest.importorskip("SimpleITK")

    def change(dataset, place: int) -> None:
        for name, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
            delattr(dataset, name) if value is None else setattr(dataset, name, value)

    plain = read_volume(ImageFile(series(tmp_path, "plain")))
    folder = edited(series(tmp_path), change)
    found = read_volume(ImageFile(folder))
    np.testing.assert_array_equal(found.array, plain.array * expected[0] + expected[1])
    if slope != "":  # which stops GDCM
        theirs = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
        np.testing.assert_array_equal(found.array[:, :, ::-1], sitk.GetArrayFromImage(theirs).T)


def test_a_series_after_many_other_files_is_found(tmp_path: Path) -> None:
    folder = series(tmp_path)
    for number in range(30):
        (folder / f"A{number}.log").write_text("exported")
    assert [wanted.is_dicom for wanted in find_images(tmp_path)] == [True]


def test_localizers_alone_in_a_folder_are_left_out_and_said(tmp_path: Path) -> None:
    def localizer(dataset, place: int) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        if place % 2:
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    series(tmp_path / "study", "t2")
    edited(series(tmp_path / "study", "scout"), localizer)
    found = find_images(tmp_path / "study")
    assert [wanted.name for wanted in found] == ["t2"]
    (unread,) = unread_files(tmp_path / "study", found)
    assert "7 localizer images in 2 orientations" in unread


def test_the_table_of_contents_of_a_disc_is_no_image(tmp_path: Path) -> None:
    image = phantom((24, 20, 5))[0].round()
    folder = write_series(tmp_path / "p1", image, affine((1.0, 1.0, 5.0), letters="LPS"))
    disc = FileSet()
    for file in folder.iterdir():
        disc.add(file)
    disc.write(tmp_path / "disc")
    assert len(find_images(tmp_path / "disc")) == 1
    shutil.copy(tmp_path / "disc" / "DICOMDIR", folder)
    assert read_volume(ImageFile(folder)).warnings == ()
    with pytest.raises(UserError, match=r"DICOMDIR: is the table of contents of a disc, not an image; pass its folder"):
        read_volume(ImageFile(folder / "DICOMDIR"))


def test_localizers_and_other_objects_are_left_out_and_said(tmp_path: Path) -> None:
    import pydicom

    folder = series(tmp_path)
    expected = read_volume(ImageFile(series(tmp_path, "alone")))
    localizer = pydicom.dcmread(folder / "IM0000")
    localizer.ImageType, localizer.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [1, 0, 0, 0, 0, -1]
    localizer.save_as(folder / "scout")
    write_dicom_seg(np.zeros(SHAPE, np.uint8), read_volume(ImageFile(folder)), folder / "mask.dcm", LABELS)
    found = read_volume(ImageFile(folder))
    np.testing.assert_array_equal(found.array, expected.array)
    assert "Segmentation Storage" in found.warnings[0]
    assert "1 localizer image (scout)" in found.warnings[1]


def test_localizers_beside_several_series_are_left_out_and_said(tmp_path: Path) -> None:
    image = phantom(SHAPE)[0].round()
    for number, name in enumerate(("t2", "adc", "scout")):
        matrix = affine((1.0, 1.0, 5.0), letters="LPS")
        write_series(tmp_path / "study", image + number, matrix, description=name, prefix=name)
    for file in sorted((tmp_path / "study").glob("scout*")):
        scout = pydicom.dcmread(file)
        scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        scout.save_as(file)
    found = find_images(tmp_path / "study")
    assert [wanted.name.split("_")[-1] for wanted in found] == ["adc", "t2"]
    for wanted, number in zip(found, (1, 0), strict=True):
        volume = read_volume(wanted.image)
        assert volume.array.mean() == pytest.approx((image + number).mean(), abs=1e-3)
        assert [note for note in volume.warnings if note.startswith(f"left out: {SHAPE[2]} localizer images (scout")]
    assert scout.SeriesInstanceUID not in {wanted.image.series for wanted in found}
    whole = read_volume(ImageFile(tmp_path / "study", series=scout.SeriesInstanceUID))  # asked for, in one plane
    assert (whole.array.shape, whole.warnings) == (SHAPE, ())


def test_images_of_a_private_kind_are_read_and_get_no_segmentation(tmp_path: Path) -> None:
    def private(dataset, place: int) -> None:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.3.46.670589.11.0.0.12.1"

    folder = edited(series(tmp_path), private)
    np.testing.assert_array_equal(
        read_volume(ImageFile(folder)).array, read_volume(ImageFile(series(tmp_path, "x"))).array
    )
    assert "has a private SOP class of its manufacturer" in missing_for_seg(ImageFile(folder))
    with pytest.raises(UserError, match="write NIfTI instead"):
        write_dicom_seg(np.zeros(SHAPE, np.uint8), read_volume(ImageFile(folder)), tmp_path / "mask.dcm", LABELS)


def test_pictures_of_a_screen_are_no_slices(tmp_path: Path) -> None:
    folder = series(tmp_path)
    picture = _datasets(folder)[0]
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(picture, tag)
    picture.SOPClassUID = picture.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    picture.SeriesInstanceUID = pydicom.uid.generate_uid()
    picture.save_as(folder / "IM-picture")
    volume = read_volume(ImageFile(folder))
    assert volume.array.shape == SHAPE
    assert "1 Secondary Capture Image Storage" in volume.warnings[0]
    assert [each.name for each in find_images(tmp_path)] == ["series"]


def test_folders_without_images_are_left_out_and_said(tmp_path: Path) -> None:
    folder = series(tmp_path / "study", "T2")
    (tmp_path / "study" / "SEG").mkdir()
    write_dicom_seg(
        np.zeros(SHAPE, np.uint8), read_volume(ImageFile(folder)), tmp_path / "study" / "SEG" / "m.dcm", LABELS
    )
    disk = _datasets(folder)[0]
    disk.SOPClassUID = disk.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    disk.save_as(tmp_path / "study" / "DICOMDIR")
    found = find_images(tmp_path / "study")
    assert [each.name for each in found] == ["T2"]
    (unread,) = unread_files(tmp_path / "study", found)
    assert "SEG: contains no DICOM images" in unread
    assert "1 Segmentation Storage" in unread
    with pytest.raises(UserError, match=r"contains no images(?s:.*)1 Segmentation Storage"):
        find_images(tmp_path / "study" / "SEG")


def test_one_file_without_an_ending_is_dicom_by_its_mark(tmp_path: Path) -> None:
    folder = series(tmp_path)
    (found,) = find_images(folder / "IM0002")
    assert (found.name, found.is_dicom) == ("IM0002", True)
    assert read_volume(found.image).array.shape == (*SHAPE[:2], 1)


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRLittleEndian"])
@pytest.mark.parametrize("ending", ["", ".dcm"])
def test_files_of_old_scanners_have_no_prefix(tmp_path: Path, meta: bool, syntax: str, ending: str) -> None:
    expected = read_volume(ImageFile(series(tmp_path)))
    for file in sorted((tmp_path / "series").iterdir()):
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        dataset.save_as(file, implicit_vr=syntax.startswith("Implicit"), little_endian=True)
        content = file.read_bytes()[132:]
        if not meta:  # the length of group 2 is its first element
            content = content[12 + int.from_bytes(content[8:12], "little") :]
        file.unlink()
        file.with_name(file.name + ending).write_bytes(content)
    (found,) = find_images(tmp_path)
    assert found.is_dicom
    volume = read_volume(found.image)
    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    write_dicom_seg(np.ones(volume.array.shape, np.uint8), volume, tmp_path / "mask.dcm", LABELS)


def test_a_file_without_group_2_must_not_be_compressed(tmp_path: Path) -> None:
    """Its pixels would be read as if they were not compressed."""
    from pydicom.encaps import encapsulate

    def compress(dataset, place: int) -> None:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
        dataset.PixelData = encapsulate([dataset.PixelData])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True

    folder = edited(series(tmp_path), compress)
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()[132:]
        file.write_bytes(content[12 + int.from_bytes(content[8:12], "little") :])
    with pytest.raises(UserError, match=r"IM0000: has compressed pixels and does not state how"):
        read_volume(ImageFile(folder))


def test_series_of_several_patients_are_told_apart_without_their_ids(tmp_path: Path) -> None:
    image = phantom(SHAPE)[0].round()
    for value in ("Doe", "Roe"):
        folder = write_series(tmp_path / "all", image, GEOMETRIES["axial"], description="T2", prefix=value)
        for file in folder.glob(f"{value}*"):
            dataset = pydicom.dcmread(file)
            dataset.PatientID = value
            dataset.save_as(file)
    expected = ["all/patient-1_3_T2", "all/patient-2_3_T2"]
    assert [found.name for found in find_images(folder)] == expected
    options = DataOptions(channels=("T2",))
    assert [found.name for found in find_images(folder, opening=options, channels=("T2",))] == expected


def test_compressed_pixels_name_the_decoder_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless, JPEG2000MCLossless, JPEGLosslessSV1, JPEGLSLossless

    folder = series(tmp_path)
    for syntax, package in (
        (JPEGLosslessSV1, "pip install pylibjpeg pylibjpeg-libjpeg"),
        (JPEG2000Lossless, "pip install pylibjpeg pylibjpeg-openjpeg"),
        (JPEGLSLossless, "pip install pylibjpeg pyjpegls"),
        (JPEG2000MCLossless, "export the series uncompressed"),  # no package decodes it
    ):
        import pydicom.pixels.decoders.base as decoders

        monkeypatch.setattr(decoders.Decoder, "is_available", property(lambda self: False))

        def compress(dataset, place: int, syntax=syntax) -> None:
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True

        edited(folder, compress)
        with pytest.raises(UserError, match=f"IM.* are compressed as JPEG.*{package}$"):
            read_volume(ImageFile(folder))


def test_an_unknown_transfer_syntax_is_said(tmp_path: Path) -> None:
    folder = series(tmp_path)
    for file in folder.iterdir():
        content = file.read_bytes()
        file.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1))
    with pytest.raises(UserError, match=r"transfer syntax 1\.2\.840\.10008\.1\.2\.9\); export the series uncompressed"):
        read_volume(ImageFile(folder))


@pytest.mark.parametrize("tags", [["SliceThickness"], ["StudyDate", "StudyTime"], ["PatientID", "PatientName"]])
def test_a_segmentation_does_without_tags_that_may_be_empty(tmp_path: Path, tags: list[str]) -> None:
    def strip(dataset, place: int) -> None:
        for tag in tags:
            delattr(dataset, tag)

    volume = read_volume(ImageFile(edited(series(tmp_path), strip)))
    write_dicom_seg(phantom(SHAPE)[1], volume, tmp_path / "seg.dcm", LABELS)
    assert highdicom.seg.segread(tmp_path / "seg.dcm").number_of_segments == 3
    assert missing_for_seg(volume.image) == ""


@pytest.mark.parametrize("tag", ["FrameOfReferenceUID", "SeriesInstanceUID"])
def test_a_series_without_an_identity_is_read_and_gets_no_segmentation(tmp_path: Path, tag: str) -> None:
    def strip(dataset, place: int) -> None:
        delattr(dataset, tag)

    volume = read_volume(ImageFile(edited(series(tmp_path), strip)))
    assert missing_for_seg(volume.image) == f"IM0000 lacks {tag}"
    with pytest.raises(UserError, match=f"IM0000 lacks {tag}; write NIfTI instead"):
        write_dicom_seg(phantom(SHAPE)[1], volume, tmp_path / "seg.dcm", LABELS)


def test_a_deflated_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = series(tmp_path)
    file = sorted(folder.iterdir())[0]
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(file, enforce_file_format=True)
    assert read_volume(ImageFile(folder)).array.ndim == 3
    dataset.add_new(0x7FE10011, "OB", bytes(32 << 20))
    dataset.save_as(file, enforce_file_format=True)
    assert file.stat().st_size < 1 << 20
    monkeypatch.setattr("ssl_medseg.io.dicom._UNPACKED", 16 << 20)
    monkeypatch.setattr(pydicom, "dcmread", None)  # not reached
    with pytest.raises(UserError, match=rf"{file.name}: unpacks to more than 16\.8 MB"):
        read_volume(ImageFile(folder))
