"""A mask as a DICOM segmentation object, which PACS viewers overlay on the series it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ssl_medseg
from contrastive_core.errors import UserError
from contrastive_core.training import files
from ssl_medseg.data.label_map import LabelMap
from ssl_medseg.volumes.dicom import series_datasets
from ssl_medseg.volumes.extras import import_extra
from ssl_medseg.volumes.volume import Volume

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
