"""Text in the headers of files, in which programs leave names, dates and file paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel

from contrastive_core.errors import UserError
from ssl_medseg.data.files import DICOM_ENDINGS, is_series
from ssl_medseg.volumes.dicom import series_datasets
from ssl_medseg.volumes.nifti import open_nifti

_NIFTI_FIELDS = ("descrip", "aux_file", "db_name", "intent_name")
_DICOM_FIELDS = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientAddress", "OtherPatientIDs", "AccessionNumber",
    "InstitutionName", "ReferringPhysicianName", "StudyDate", "StudyDescription", "PatientComments",
)  # fmt: skip


def header_texts(path: Path) -> tuple[tuple[str, str], ...]:
    """Header fields with free text in them: field and text. Of a file that cannot be read, none."""
    try:
        if is_series(path) or path.suffix.lower() in DICOM_ENDINGS:
            first = series_datasets(path, pixels=False)[0]
            found = [(name, str(first.get(name, "") or "")) for name in _DICOM_FIELDS]
        elif path.name.lower().endswith((".nii", ".nii.gz")):
            found = _of_nifti(open_nifti(path).header)
        else:
            return ()
    except (UserError, OSError):
        return ()
    return tuple((name, text) for name, text in found if text.strip())


def _of_nifti(header: Any) -> list[tuple[str, str]]:
    if not isinstance(header, nibabel.Nifti1Header):
        return []
    found = [(name, header[name].tobytes().rstrip(b"\0").decode("latin-1")) for name in _NIFTI_FIELDS]
    return found + [
        (f"extension {number}", f"code {extension.get_code()}, {extension.get_sizeondisk()} bytes")
        for number, extension in enumerate(header.extensions, 1)
    ]
