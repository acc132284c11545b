"""Read DICOM series with highdicom, and write masks as DICOM segmentations.

MONAI's reader orders slices by their number, measures their distance along the scanner's axis alone and stacks what is
there: a series with a slice missing comes out shorter and stretched. highdicom orders them by position along their
normal and refuses series that are not regular.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ssl_medseg
from contrastive_core.errors import UserError
from contrastive_core.training import files
from ssl_medseg.io.file_types import DICOM_ENDINGS
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.volume import Volume, checked_affine, import_extra

_NOT_IMAGES = (".json", ".txt", ".csv", ".xml", ".md")


def read_series(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read the images of one series.

    Args:
        path: a folder with one series, or a file of one (enhanced, multi-frame) image.

    Returns:
        Float32 ``[columns, rows, slices]`` with rescale slope and intercept applied, and the affine in RAS+.

    Raises:
        UserError: no DICOM images, several series, slices that are missing, doubled or not parallel; pydicom or
            highdicom is not installed.
    """
    highdicom = import_extra("highdicom", extra="dicom", needed_for=f"{path}: reading DICOM")
    datasets = series_datasets(path)
    try:
        if len(datasets) == 1 and int(datasets[0].get("NumberOfFrames", 1)) > 1:
            volume = highdicom.Image.from_dataset(datasets[0], copy=False).get_volume(dtype=np.float32)
        else:
            _check_positions(datasets, path)
            volume = highdicom.get_volume_from_series(datasets, dtype=np.float32)
    except (ValueError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{path}: its DICOM images do not make one volume ({error}); expected a series of parallel slices at equal "
            "distances. Export the series again, or split it"
        ) from error
    if volume.array.ndim != 3:
        raise UserError(f"{path}: holds colour images, expected one number per voxel")
    slices_rows_columns = volume.get_affine("RAS")
    return volume.array.transpose(2, 1, 0), checked_affine(slices_rows_columns[:, [2, 1, 0, 3]], path)


def series_datasets(path: Path, *, pixels: bool = True) -> list[Any]:
    """The images of a series as pydicom's data sets, in the order of their file names.

    Raises:
        UserError: none there, a damaged one, or of several series.
    """
    pydicom = import_extra("pydicom", extra="dicom", needed_for=f"{path}: reading DICOM")
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; expected a DICOM series")
    found = []
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if not file.is_file() or file.name.startswith(".") or file.suffix.lower() in _NOT_IMAGES:
            continue
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=not pixels)
        except pydicom.errors.InvalidDicomError as error:
            if file.suffix.lower() in DICOM_ENDINGS or not file.stat().st_size:
                raise UserError(
                    f"{file}: is empty or damaged, expected a DICOM file; copy it again, or remove it"
                ) from error
            continue
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{file}: cannot be read as DICOM ({error}); copy it again") from error
        if "Rows" in dataset:  # not a DICOMDIR, a report or the like
            found.append(dataset)
        elif _lacks_its_image(dataset):
            raise UserError(f"{file}: ends before its image, so the file is cut off; copy it again")
    if not found:
        raise UserError(f"{path}: holds no DICOM images; expected the folder of one series")
    series = Counter(str(dataset.get("SeriesInstanceUID", "")) for dataset in found)
    if len(series) > 1:
        raise UserError(
            f"{path}: holds {len(series)} DICOM series, of {', '.join(map(str, series.values()))} images; expected "
            "one. Give every series a folder of its own"
        )
    return found


def _lacks_its_image(dataset: Any) -> bool:
    """Whether something without an image should have one: by its class, as reports and DICOMDIRs should not."""
    kind = dataset.file_meta.get("MediaStorageSOPClassUID") or dataset.get("SOPClassUID")
    return kind is None or "Image Storage" in kind.name


def _check_positions(datasets: list[Any], path: Path) -> None:
    """Say of what is no regular volume what is wrong with it, better than highdicom does."""
    lacking = [
        name for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing") if name not in datasets[0]
    ]
    if lacking:
        raise UserError(f"{path}: its images lack {', '.join(lacking)}, so their place in the patient is unknown")
    if len(datasets) == 1:
        return
    normal = np.cross(*np.asarray(datasets[0].ImageOrientationPatient, dtype=float).reshape(2, 3))
    along = np.sort([normal @ np.asarray(dataset.ImagePositionPatient, dtype=float) for dataset in datasets])
    steps = np.diff(along)
    step = float(np.median(steps))
    if (steps < 0.01 * max(step, 1e-3)).any():
        raise UserError(
            f"{path}: has {len(datasets)} images at {1 + int((steps >= 0.01 * max(step, 1e-3)).sum())} positions; "
            "expected one image at each. Of cine, multi-echo or diffusion series give every phase a folder of its own"
        )
    gaps = np.flatnonzero(steps > 1.5 * step)
    if len(gaps):
        missing = int(sum(round(float(steps[gap]) / step) - 1 for gap in gaps))
        after = ", ".join(str(gap + 1) for gap in gaps)
        raise UserError(
            f"{path}: {missing} slices seem to be missing: {len(datasets)} were found {step:.3g} mm apart, with gaps "
            f"after number {after} counted along the stack; expected equal distances. Export the series again"
        )


_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SERIES_NUMBER = 9001
_NAME_LENGTH = 64


def write_dicom_seg(classes: NDArray[np.uint8], like: Volume, path: Path, labels: LabelMap) -> None:
    """Write a binary DICOM segmentation that refers to the images of its series.

    Segment n is structure n of the label map, with its name; DICOM numbers segments from 1 without gaps, so other
    values of the user's labels are not repeated. Patient and study are those of the series, as the standard demands.
    The file is complete or not there.

    Args:
        classes: uint8 ``[X, Y, Z]``, 0 the background.
        like: the volume, read from a DICOM series that still lies where it did.
        path: of the file.
        labels: names of the structures.

    Raises:
        UserError: the series cannot be read or lacks what the object must repeat, or highdicom is not installed.
    """
    highdicom = import_extra("highdicom", extra="dicom", needed_for=f"{path}: writing DICOM segmentations")
    source = series_datasets(Path(like.image.path), pixels=False)
    volume = highdicom.Volume(
        array=classes.transpose(2, 1, 0),
        affine=_RAS_TO_LPS @ like.affine[:, [2, 1, 0, 3]],
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
        )
    except (AttributeError, ValueError, TypeError) as error:
        raise UserError(
            f"{like.image.path}: no DICOM segmentation can refer to this series ({error}); write NIfTI instead"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.tmp")
    try:
        segmentation.save_as(new)
        files.sync(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _segment(number: int, name: str) -> Any:
    import highdicom  # noqa: PLC0415 - an extra, and slow to import
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:_NAME_LENGTH],
        # What kind of structure a name of the user's means is not known; these two codes are true of all.
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.AnatomicalStructure,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="ssl-medseg", version=ssl_medseg.__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
