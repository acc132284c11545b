"""Options for opening a data set, shared by every command that takes one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from contrastive_core.errors import UserError
from ssl_medseg.io.volume import ImageFile

Layout = Literal["auto", "decathlon", "nnunet", "bids", "folders", "csv"]


@dataclass(frozen=True)
class DataOptions:
    """How to open a data set.

    Args:
        layout: Layout of the files; auto: detected.
        channels: Channels to use (T2, ADC, ...), by name or number, the first of which gives the grid: ``T2,ADC``;
            NAME=CHANNEL calls one by another name, or finds a DICOM series by its description; by default all there
            are. Channels that the data do not name get these names, in order.
        frame: Time point of images with several, counted from 0.
        frame_table: CSV file with the columns case and frame, for cases of which another time point is meant than
            --frame, such as end-diastole of each heart.
        voxel_size: Sides of a voxel in mm along the axes of the files, for files that do not state them: ``1,1,3``.
        trust_pixdim: Take the sides of a voxel from pixdim in NIfTI headers whose form codes are 0.
        label_map: File that says what the values of the labels mean, where the data set does not.
        patient_pattern: Regular expression searched in the names of cases; what its group matches is the patient.
        patients: CSV file with the columns case and patient.
        unlabelled: Text file with the names of cases that are meant to have no label, one per line.
        allow_unlabelled: Accept any case without a label.
    """

    layout: Layout = "auto"
    channels: tuple[str, ...] = ()
    frame: int | None = None
    frame_table: Path | None = None
    voxel_size: tuple[float, float, float] | None = None
    trust_pixdim: bool = False
    label_map: Path | None = None
    patient_pattern: str | None = None
    patients: Path | None = None
    unlabelled: Path | None = None
    allow_unlabelled: bool = False

    def __post_init__(self) -> None:
        if self.voxel_size is not None and not all(0 < side < float("inf") for side in self.voxel_size):
            raise UserError(f"voxel_size is {self.voxel_size}; expected three sides in mm above 0, such as 1,1,3")

    def image(self, path: Path, *, channel: int | None = None, frame: int | None = None, name: str = "") -> ImageFile:
        """The image in a file, with the part of it and the voxel size that these options state.

        Args:
            path: Of the file or folder.
            channel: Channel of a file with several.
            frame: In place of the options' one.
            name: Name of the channel.
        """
        return ImageFile(
            path,
            channel=channel,
            frame=self.frame if frame is None else frame,
            spacing=self.voxel_size,
            trust_pixdim=self.trust_pixdim,
            name=name,
        )
