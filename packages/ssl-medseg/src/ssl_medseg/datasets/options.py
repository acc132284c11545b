"""Define the options for opening a data set, shared by all commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from contrastive_core.errors import UserError
from ssl_medseg.io.volume import ImageFile

Layout = Literal["auto", "decathlon", "nnunet", "bids", "folders", "csv"]


@dataclass(frozen=True)
class DataOptions:
    """Options for opening a data set.

    Args:
        layout: Layout of the files; auto detects it.
        channels: Channels to use, by name or number, such as ``T2,ADC``; the first one defines the grid.
            NAME=CHANNEL renames a channel, or selects a DICOM series by its description. Unnamed channels get the given
            names, in order. By default all channels are used.
        frame: Time point to use of images with several, counted from 0.
        frame_table: CSV file with the columns case and frame, and optionally phase (ED or ES), for cases that need a
            time point other than --frame, such as end-diastole of each heart.
        voxel_size: Voxel size in mm along the axes of the files, for files that do not state it, such as ``1,1,3``.
        trust_pixdim: Use the voxel size (pixdim) of NIfTI headers whose form codes are 0.
        label_map: File with the meaning of the label values, if the data set does not state it.
        patient_pattern: Regular expression that is searched in case names; its group is the name of the patient.
        patients: CSV file with the columns case and patient.
        unlabelled: Text file with the names of cases that have no label on purpose, one per line.
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
            raise UserError(f"voxel_size is {self.voxel_size}; expected three lengths in mm above 0, such as 1,1,3")

    def image(self, path: Path, *, channel: int | None = None, frame: int | None = None, name: str = "") -> ImageFile:
        """Describe the image in a file, with frame and voxel size from these options.

        Args:
            path: File or folder.
            channel: Channel of a multi-channel file.
            frame: Time point, if it differs from that of the options.
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
