"""DICOM series of phantoms, written with pydicom as scanners write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_series(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    *,
    leave_out: Sequence[int] = (),
    slope: float = 1.0,
    study: str = "",
    description: str = "",
    prefix: str = "IM",
) -> Path:
    """Write integers ``[columns, rows, slices]``, a file per slice, with shuffled numbers and file names."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = study or generate_uid(), generate_uid(), generate_uid()
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    order = np.random.default_rng(0).permutation(array.shape[2])
    for z in range(array.shape[2]):
        if z in leave_out:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Doe^Jane", "42", "19700101", "F"
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260101", "120000", "1", "1"
        ds.ReferringPhysicianName = ""
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "MR", 3, int(order[z]) + 1
        if description:
            ds.SeriesDescription = description
        ds.Manufacturer, ds.PositionReferenceIndicator = "none", ""
        ds.ImageType = ["ORIGINAL", "PRIMARY"]
        ds.ImageOrientationPatient = [f"{v:.10g}" for v in (*(lps[:3, 0] / spacing[0]), *(lps[:3, 1] / spacing[1]))]
        ds.ImagePositionPatient = [f"{v:.10g}" for v in (lps @ [0, 0, z, 1])[:3]]
        ds.PixelSpacing, ds.SliceThickness = [f"{spacing[1]:.10g}", f"{spacing[0]:.10g}"], f"{spacing[2]:.6g}"
        ds.Rows, ds.Columns = array.shape[1], array.shape[0]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
        ds.RescaleSlope, ds.RescaleIntercept = slope, 0
        ds.PixelData = np.ascontiguousarray(array[:, :, z].T.astype("<u2")).tobytes()
        ds.save_as(folder / f"{prefix}{order[z]:04d}", enforce_file_format=True)
    return folder
