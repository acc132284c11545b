"""Read DICOM segmentations with highdicom, and write masks as such."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ssl_medseg
from contrastive_core.errors import UserError
from contrastive_core.training import files
from contrastive_core.training.documents import reading
from ssl_medseg.io.dicom import NOT_IMAGES, RAS_TO_LPS, check_deflated, series_images, sop_class
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import Grid, ImageFile, Volume, checked_affine, import_extra

_SERIES_NUMBER = 9001
NAME_LENGTH = 64
"""Largest number of characters of a segment's name; longer names of structures are cut off."""
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "SeriesNumber", "InstanceNumber",
    "Manufacturer",
)  # fmt: skip
"""Tags that a segmentation copies from its series and that the standard allows to be empty (type 2)."""
_MUST_BE_THERE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")


def read_segmentation(path: Path) -> tuple[tuple[str, ...], NDArray[np.bool_], Grid]:
    """Read a DICOM segmentation.

    Args:
        path: File, or folder that contains no other segmentation.

    Returns:
        Names of the segments, their masks ``[segments, X, Y, Z]``, and the grid of the voxels, which cover the slices
        between the first and the last one with a segment.

    Raises:
        UserError: There is no segmentation or there are several, the file cannot be read, its frames do not form a
            volume, its values are fractions, or pydicom or highdicom is not installed.
    """
    highdicom = import_extra("highdicom", extra="dicom", needed_for=f"{path}: reading DICOM segmentations")
    dataset = _segmentation(path, pixels=True)
    if dataset.get("SegmentationType") == "FRACTIONAL":
        raise UserError(f"{path}: its segments are fractions (probabilities); expected a binary segmentation")
    with reading(path, "is not a segmentation of one volume", "convert it to NIfTI with your viewer"):
        segmentation = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
        # Voxels of a label map hold the numbers of their segments; highdicom 0.28 loses those above 255 when it
        # separates them.
        is_map = dataset.get("SegmentationType") == "LABELMAP"
        volume = segmentation.get_volume(combine_segments=is_map)
        voxels = np.asarray(volume.array)  # [slices, rows, columns] or [slices, rows, columns, segments]
        if is_map:
            numbers = [int(segment.SegmentNumber) for segment in _segments(dataset)]
            rest = np.setdiff1d(voxels, [*numbers, 0, dataset.get("PixelPaddingValue", 0)])
            if rest.size:
                raise UserError(f"{path}: contains the value {rest[0]}, to which it gives no segment; export it again")
            voxels = voxels[..., None] == numbers
        names = _segment_labels(dataset)
        masks = np.moveaxis(voxels != 0, (0, 1, 2, 3), (3, 2, 1, 0))
        affine = np.asarray(volume.affine)[:, [2, 1, 0, 3]]
    _, x, y, z = masks.shape
    return names, masks, Grid((x, y, z), checked_affine(RAS_TO_LPS @ affine, path))


def named_segments(path: Path) -> tuple[str, ...]:
    """Return the names of the segments of a DICOM segmentation, without reading its voxels.

    Raises:
        UserError: For the same reasons as in `read_segmentation`.
    """
    dataset = _segmentation(path, pixels=False)
    with reading(path, "is not a segmentation", "convert it to NIfTI with your viewer"):
        return _segment_labels(dataset)


def _segments(dataset: Any) -> list[Any]:
    """Return the segments in the order of their numbers, without the background, which label maps have as number 0."""
    segments = sorted(dataset.SegmentSequence, key=lambda segment: int(segment.SegmentNumber))
    return [segment for segment in segments if int(segment.SegmentNumber)]


def _segment_labels(dataset: Any) -> tuple[str, ...]:
    return tuple(str(segment.SegmentLabel) for segment in _segments(dataset))


def _segmentation(path: Path, *, pixels: bool) -> Any:
    """Return pydicom's data set of the only segmentation in a file or folder."""
    pydicom = import_extra("pydicom", extra="dicom", needed_for=f"{path}: reading DICOM segmentations")
    kinds: dict[str, list[Any]] = {}
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() not in NOT_IMAGES:
            with reading(file, "cannot be read as DICOM", "copy it again"):
                check_deflated(file)
                dataset = pydicom.dcmread(file, stop_before_pixels=not pixels)
            kinds.setdefault(sop_class(dataset)[1], []).append(dataset)
    segmentations = [dataset for kind in kinds if "Segmentation Storage" in kind for dataset in kinds[kind]]
    if len(segmentations) != 1:
        tally = ", ".join(f"{len(objects)} {kind}" for kind, objects in kinds.items()) or "no DICOM file"
        raise UserError(
            f"{path}: contains {tally}; expected one DICOM segmentation, or a label as NIfTI, NRRD or MetaImage. "
            "Convert contours (RT structure sets) to a label map with your viewer"
        )
    return segmentations[0]


def missing_for_seg(image: ImageFile) -> str:
    """Explain why a DICOM segmentation cannot refer to a series, as a phrase; empty if it can.

    A file of the series lacks tags that a segmentation must copy, or has a private SOP class.
    """
    source, _ = series_images(Path(image.path), series=image.series, pixels=False)
    for one in source:
        lacking = [name for name in _MUST_BE_THERE if not one.dataset.get(name)]
        if lacking:
            return f"{one.name} lacks {', '.join(lacking)}"
        if one.dataset.SOPClassUID.is_private:
            return f"{one.name} has a private SOP class of its manufacturer, {one.dataset.SOPClassUID}"
    return ""


def write_dicom_seg(classes: NDArray[np.uint8], like: Volume, path: Path, labels: LabelMap) -> None:
    """Write a binary DICOM segmentation that refers to the images of its series.

    Segment n is structure n of the label map and has its name. DICOM numbers segments from 1 without gaps, so other
    label values are not kept. The segmentation contains the patient and study of the series, as the standard requires.
    The file appears only once it is complete.

    Args:
        classes: uint8 ``[X, Y, Z]``, 0 for the background.
        like: Volume that was segmented, read from a DICOM series that has not been moved since.
        path: File to write.
        labels: Names of the structures.

    Raises:
        UserError: The series cannot be read or lacks tags that the segmentation must copy, or highdicom is not
            installed.
    """
    highdicom = import_extra("highdicom", extra="dicom", needed_for=f"{path}: writing DICOM segmentations")
    lacking = missing_for_seg(like.image)
    if lacking:
        raise UserError(
            f"{like.image.path}: a DICOM segmentation cannot refer to this series: {lacking}; write NIfTI instead"
        )
    images, _ = series_images(Path(like.image.path), series=like.image.series, pixels=False)
    source = [_complete(image.dataset, like.spacing[2]) for image in images]
    volume = highdicom.Volume(
        array=classes.transpose(2, 1, 0),
        affine=RAS_TO_LPS @ like.affine[:, [2, 1, 0, 3]],
        coordinate_system="PATIENT",
        frame_of_reference_uid=source[0].FrameOfReferenceUID,
    )
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=source,
            pixel_array=volume,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(number, name) for number, name in enumerate(labels.structures, start=1)],
            series_instance_uid=highdicom.UID(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="ssl-medseg",
            manufacturer_model_name="ssl-medseg",
            software_versions=ssl_medseg.__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            series_description="ssl-medseg segmentation",
            specific_character_set=_character_set(source[0], labels.structures),
        )
    except Exception as error:
        raise UserError(
            f"{like.image.path}: a DICOM segmentation cannot refer to this series ({error}); write NIfTI instead"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.tmp")
    try:
        segmentation.save_as(new)
        files.sync(new)
        files.put_in_place(new, path)
    finally:
        new.unlink(missing_ok=True)


def _character_set(dataset: Any, names: Sequence[str]) -> str | None:
    """Return the character set of a series, or UTF-8 if it cannot hold the names of the structures.

    Characters that it lacks would be replaced by question marks. highdicom writes no text with several character sets,
    as it is usual in Japan.
    """
    own = dataset.get("SpecificCharacterSet")
    is_single = own is None or (isinstance(own, str) and own)
    return own if is_single and all(map(str.isascii, names)) else "ISO_IR 192"


def _complete(dataset: Any, thickness: float) -> Any:
    """Copy a data set and add the tags that it lacks and that may be empty."""
    completed = copy.copy(dataset)
    for name in _MAY_BE_EMPTY:
        if name not in completed:
            setattr(completed, name, None if name in ("SeriesNumber", "InstanceNumber") else "")
    if frames := completed.get("PerFrameFunctionalGroupsSequence"):
        # Scanners may state the size and orientation of the pixels by frame; highdicom needs those of all frames, which
        # are equal, because the frames form a volume.
        shared = copy.copy(next(iter(completed.get("SharedFunctionalGroupsSequence") or ()), type(frames[0])()))
        for name in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            if name not in shared and name in frames[0]:
                setattr(shared, name, frames[0].get(name))
        completed.SharedFunctionalGroupsSequence = [shared]
    elif not completed.get("SliceThickness"):
        completed.SliceThickness = f"{thickness:.6g}"
    return completed


def _segment(number: int, name: str) -> Any:
    import highdicom  # noqa: PLC0415 - an extra, and slow to import
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:NAME_LENGTH],
        # The names of structures are the user's, so their codes are unknown; these two apply to all.
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.AnatomicalStructure,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="ssl-medseg", version=ssl_medseg.__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
