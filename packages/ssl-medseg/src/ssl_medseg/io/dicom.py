"""Read DICOM series with pydicom.

Slices are ordered by their position along their normal, and a series with missing, duplicate or irregularly spaced
slices is refused. MONAI's reader orders slices by instance number and stacks whatever is there, so that a series with a
missing slice becomes shorter and stretched.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.text import several, size, some_of
from contrastive_core.training.documents import reading
from contrastive_core.training.names import as_file_name
from ssl_medseg.io.file_types import DICOM_ENDINGS, has_dicom_mark
from ssl_medseg.io.volume import Grid, check_voxel_size, checked_affine, import_extra

NOT_IMAGES = (".json", ".txt", ".csv", ".xml", ".md")
_NEEDED = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2, "Rows": 1, "Columns": 1}
"""Tag that every image needs -> how many numbers it holds."""
_EQUAL = ("Rows", "Columns", "PixelSpacing")
_CONTRAST = {"EchoTime": 0.05, "EffectiveEchoTime": 0.05, "DiffusionBValue": 0.05}
"""Numbers that differ between the images of several contrasts, and by which fraction they may differ in one volume."""
_DIXON = ("W", "F", "IP", "OP", "WATER", "FAT", "IN_PHASE", "OUT_PHASE", "OPP_PHASE")
_PARTS = frozenset((*_DIXON, "M", "P", "R", "I", "MAGNITUDE", "PHASE", "REAL", "IMAGINARY"))
"""Values of ImageType by which images of several contrasts in one series differ."""
_IDENTITY = ("PatientID", "StudyInstanceUID")
_JITTER = 0.05
"""Largest accepted deviation of a slice position from regular spacing, relative to the distance between slices."""
_NOTE_JITTER = 0.005
_PARALLEL = 1e-3
_ROUNDED = 5e-3
"""Largest deviation of the direction cosines that is attributed to rounding, as to two decimals."""
_SHOWN = 3
_DECODERS = {
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "High-Throughput": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG-LS": "pylibjpeg pyjpegls",
    "JPEG": "pylibjpeg pylibjpeg-libjpeg",
}
_NEW_CLASSES = {"1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage"}
"""Kinds of objects of the standard of 2024 and later whose names pydicom 3.0 does not know."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META, _PIECE, _UNPACKED = 1 << 16, 1 << 20, 512 << 20
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class NoImagesError(UserError):
    """Raised if a folder of DICOM files contains only objects that are not images of a volume."""


@dataclass(frozen=True)
class SeriesImage:
    """DICOM file with an image: its name and pydicom's data set."""

    name: str
    dataset: Any

    @property
    def series(self) -> str:
        """UID of the series; empty if there is none."""
        return str(self.dataset.get("SeriesInstanceUID", ""))

    @property
    def is_localizer(self) -> bool:
        """Whether the image is a localizer, acquired for planning other images."""
        return "LOCALIZER" in _upper_values(self.dataset.get("ImageType"))

    @property
    def is_multi_frame(self) -> bool:
        """Whether the positions are stored by frame, as in enhanced images, also in those with a single frame."""
        return int(self.dataset.get("NumberOfFrames", 1) or 1) > 1 or "PerFrameFunctionalGroupsSequence" in self.dataset


def _upper_values(value: Any) -> frozenset[str]:
    """Return the values of ImageType or FrameType in upper case; pydicom gives a single one as text."""
    return frozenset(map(str.upper, [value] if isinstance(value, str) else value or ()))


def read_series(path: Path, *, series: str | None = None) -> tuple[NDArray[np.float32], Grid, tuple[str, ...]]:
    """Read the images of one series.

    Args:
        path: Folder with a series, or file of an enhanced (multi-frame) image.
        series: UID of the series to read; needed if the folder contains several.

    Returns:
        Float32 ``[columns, rows, slices]`` with the rescale slope and intercept of each slice applied; the grid; and
        notes about objects that were left out and positions that were corrected.

    Raises:
        UserError: There are no DICOM images, or several series; tags or slices are missing; slices are duplicated,
            tilted or of different sizes; the pixels are compressed and no decoder is installed; or pydicom or highdicom
            is not installed.
    """
    images, notes = series_images(path, series=series)
    if len(images) == 1 and images[0].is_multi_frame:
        array, affine = _multi_frame(images[0], path)
    else:
        images, affine, more = _stack(images, path)
        notes += more
        array = np.stack([_pixels(image, path) for image in images], axis=-1)
    if any(image.dataset.get("PhotometricInterpretation") == "MONOCHROME1" for image in images):
        notes.append("the images are meant to be displayed inverted (MONOCHROME1); intensities are used as stored")
    x, y, z = array.shape
    grid = Grid((x, y, z), checked_affine(affine, path), any_order=True)
    check_voxel_size(grid, path)
    return array, grid, tuple(notes)


@dataclass(frozen=True)
class Series:
    """Series in a folder of DICOM files.

    Attributes:
        uid: UID of the series.
        study: UID of the study.
        description: Series description; empty if there is none.
        name: Name that is unique in the folder, made of the number and the description of the series; preceded by
            ``patient-1``, ``patient-2``, ... in the order of the files if the folder holds several patients.
    """

    uid: str
    study: str
    description: str
    name: str


def list_series(folder: Path) -> list[Series]:
    """List the series of a folder in the order of their files; localizers only if there is nothing else.

    Raises:
        NoImagesError: There are no images.
        UserError: A file is damaged, or pydicom is not installed.
    """
    first: dict[str, Any] = {}
    for image in _images(folder, pixels=False, notes=[]):
        if not image.is_localizer:
            first.setdefault(image.series, image.dataset)
    if not first:  # localizers alone
        first = {image.series: image.dataset for image in series_images(folder, pixels=False)[0]}
    all_series = []
    # Numbers, because outputs contain nothing that identifies a patient.
    patients = list(dict.fromkeys(str(dataset.get("PatientID", "") or "") for dataset in first.values()))
    for number, (uid, dataset) in enumerate(first.items(), 1):
        name_parts = [str(dataset.get(tag, "") or "") for tag in ("SeriesNumber", "SeriesDescription")]
        if len(patients) > 1:
            name_parts.insert(0, f"patient-{patients.index(str(dataset.get('PatientID', '') or '')) + 1}")
        text = "_".join(filter(None, (part.replace(".", "-").strip() for part in name_parts)))
        study = str(dataset.get("StudyInstanceUID", ""))
        all_series.append(Series(uid, study, name_parts[-1].strip(), as_file_name(text, otherwise=f"series-{number}")))
    counts = Counter(series.name for series in all_series)
    return [
        series if counts[series.name] == 1 else replace(series, name=f"{series.name}_{number}")
        for number, series in enumerate(all_series, 1)
    ]


def series_images(path: Path, *, series: str | None = None, pixels: bool = True) -> tuple[list[SeriesImage], list[str]]:
    """Return the images of a series in the order of their file names, and notes about the objects left out.

    Objects without an image (segmentations, reports, presentation states) are recognised by their SOP class, localizers
    by their image type.

    Raises:
        NoImagesError: There are no images.
        UserError: There are several series, or a file is damaged.
    """
    notes: list[str] = []
    images, localizers = list[SeriesImage](), list[SeriesImage]()
    for image in _images(path, pixels=pixels, notes=notes):
        if image.is_localizer:
            localizers.append(image)
        elif series in (None, image.series):
            images.append(image)
    if images and localizers:
        notes.append(
            f"left out: {several(len(localizers), 'localizer image')} ({some_of(image.name for image in localizers)})"
        )
    elif localizers:
        images = [image for image in localizers if series in (None, image.series)]
        planes = {_numbers(image.dataset, "ImageOrientationPatient") for image in images}
        if len(planes) > 1:
            notes.append(f"left out: {several(len(images), 'localizer image')} in {len(planes)} orientations")
            images = []
    if not images:
        reason = f" ({'; '.join(notes)})" if notes else ""
        raise NoImagesError(f"{path}: contains no DICOM images; expected the folder of one series{reason}")
    counts = Counter(image.series for image in images)
    if len(counts) > 1:
        names = sorted({str(image.dataset.get("SeriesDescription", "") or "without a description") for image in images})
        raise UserError(
            f"{path}: contains {len(counts)} DICOM series with {', '.join(map(str, counts.values()))} images "
            f"({', '.join(names)}); expected one. Select the channels by series description (--channels "
            "T2=t2_tse,ADC=ADC), or put every series into a folder of its own"
        )
    return images, notes


def check_deflated(file: Path) -> None:
    """Refuse a deflated file that would unpack to an implausible size; pydicom would unpack all of it in memory.

    Raises:
        UserError: The unpacked content exceeds the limit.
    """
    with file.open("rb") as stream:
        head = stream.read(_META)
        meta = 132 if head[128:132] == b"DICM" else 0
        if _DEFLATED not in head or head[meta : meta + 2] != b"\x02\x00":
            return
        # The first element of the first group states the length of the others.
        stream.seek(meta + 12 + int.from_bytes(head[meta + 8 : meta + 12], "little"))
        unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while (part := stream.read(_PIECE)) and not unpacker.eof:
            while part:
                total += len(unpacker.decompress(part, _PIECE))
                part = unpacker.unconsumed_tail
                if total > _UNPACKED:
                    raise UserError(
                        f"{file}: unpacks to more than {size(_UNPACKED)}, which is not plausible for an image; export "
                        "it uncompressed"
                    )


def _images(path: Path, *, pixels: bool, notes: list[str]) -> Iterator[SeriesImage]:
    pydicom = import_extra("pydicom", extra="dicom", needed_for=f"{path}: reading DICOM")
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; expected a DICOM series")
    others: Counter[str] = Counter()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if not file.is_file() or file.name.startswith(".") or file.suffix.lower() in NOT_IMAGES:
            continue
        try:
            with reading(file, "cannot be read as DICOM", "copy it again"):
                check_deflated(file)
                # pydicom reads any file with `force`; only those that begin as DICOM are meant.
                dataset = pydicom.dcmread(file, stop_before_pixels=not pixels, force=has_dicom_mark(file))
                _complete_meta(dataset)
        except UserError as error:
            if not isinstance(error.__cause__, pydicom.errors.InvalidDicomError):
                raise
            if file.suffix.lower() in DICOM_ENDINGS or not file.stat().st_size:
                raise UserError(
                    f"{file}: is empty or damaged, expected a DICOM file; copy it again, or remove it"
                ) from error
            continue
        kind, name = sop_class(dataset)
        if name == "Media Storage Directory Storage":
            if path.is_dir():
                continue
            raise UserError(f"{path}: is the table of contents of a disc, not an image; pass its folder instead")
        if kind is not None and not _is_image(kind, name, dataset):
            others[name] += 1
        elif "Rows" in dataset:
            yield SeriesImage(file.name, dataset)
        else:
            raise UserError(f"{file}: ends before its image, so the file is cut off; copy it again")
    if others:
        tally = ", ".join(f"{count} {name}" for name, count in others.items())
        notes.append(f"left out: DICOM objects that are not images of a volume ({tally})")


def sop_class(dataset: Any) -> tuple[Any, str]:
    """Return the UID of the kind of object, None if it is not stated, and its name."""
    kind = dataset.file_meta.get("MediaStorageSOPClassUID") or dataset.get("SOPClassUID")
    return kind, _NEW_CLASSES.get(kind) or getattr(kind, "name", "") or "unknown kind"


def _complete_meta(dataset: Any) -> None:
    """State the transfer syntax of a file without group 2, which pydicom has recognised from the first elements.

    Raises:
        UserError: The pixels are compressed, by a method that the file does not state.
    """
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian  # noqa: PLC0415

    if "TransferSyntaxUID" in dataset.file_meta:
        return
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise UserError("has compressed pixels and does not state how (TransferSyntaxUID); export it uncompressed")
    is_implicit, is_little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit


def _is_image(kind: Any, name: str, dataset: Any) -> bool:
    """Return whether an object may be a slice or a volume, according to its SOP class."""
    if kind.is_private:  # manufacturers use private classes for raw data as well as for images
        return "ImagePositionPatient" in dataset and "Rows" in dataset
    # Screenshots have no position in the patient.
    return "Image Storage" in name and ("Secondary Capture" not in name or "ImagePositionPatient" in dataset)


def _multi_frame(image: SeriesImage, path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    highdicom = import_extra("highdicom", extra="dicom", needed_for=f"{path}: reading DICOM")
    _check_decoder(image, path)
    _check_colour(image, path)
    _check_bits(image, path)
    if frames := _frames_of(image):
        _check_contrasts(frames, path)
    _clear_unused_bits(image, path)
    if not image.dataset.get("SharedFunctionalGroupsSequence", True):
        # highdicom reads its first item, which an empty sequence lacks.
        del image.dataset.SharedFunctionalGroupsSequence
    problem = f"the frames of {image.name} do not form one volume"
    with reading(path, problem, "expected parallel frames at equal distances. Export the series again, or split it"):
        # The transforms are those of single-frame images; by default, highdicom would also invert what is displayed
        # inverted.
        volume = highdicom.Image.from_dataset(image.dataset, copy=False).get_volume(
            dtype=np.float32, apply_real_world_transform=False, apply_presentation_lut=False
        )
    affine = volume.get_affine("RAS")[:, [2, 1, 0, 3]]
    if len(volume.array) == 1:
        affine[:3, 2] *= _thickness(image.dataset) / volume.spacing[0]
    return volume.array.transpose(2, 1, 0), affine


def _clear_unused_bits(image: SeriesImage, path: Path) -> None:
    """Extend the stored bits of uncompressed pixels to all allocated ones.

    The bits above may hold overlays, or lack the sign. pydicom disregards them, but highdicom takes them as intensity.
    """
    dataset = image.dataset
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated or dataset.get("BitsStored") == dataset.get("BitsAllocated"):
        return
    with reading(path, f"the pixels of {image.name} cannot be read", "the file is damaged. Copy it again"):
        pixels = dataset.pixel_array
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1


def _thickness(dataset: Any) -> float:
    """Return the thickness of the slice of a multi-frame image with a single frame; highdicom takes it as 1 mm."""
    groups = (*dataset.get("SharedFunctionalGroupsSequence", ()), *dataset.PerFrameFunctionalGroupsSequence)
    measures = [measure for group in groups for measure in group.get("PixelMeasuresSequence", ())]
    distances = [one.get("SpacingBetweenSlices") or one.get("SliceThickness") for one in measures]
    return float(next(filter(None, distances), 1))


def _stack(images: Sequence[SeriesImage], path: Path) -> tuple[list[SeriesImage], NDArray[np.float64], list[str]]:
    """Sort the images by position; return them with the affine in RAS+ and notes."""
    _check_frames(images, path)
    _check_identity(images, path)
    _check_tags(images, path)
    orientation = np.array([[float(v) for v in image.dataset.ImageOrientationPatient] for image in images])
    usual = np.median(orientation, axis=0)
    odd = [image for image, o in zip(images, orientation, strict=True) if np.abs(o - usual).max() > _PARALLEL]
    if odd:
        raise UserError(
            f"{path}: {len(odd)} of {len(images)} images have a different orientation from the others "
            f"({some_of(image.name for image in odd)}); expected parallel slices. If they are localizers or belong to "
            "another series, move them to a folder of their own"
        )
    _check_sizes(images, path)
    rows, columns = _directions(usual, path)
    normal = np.cross(rows, columns)
    position = np.array([[float(v) for v in image.dataset.ImagePositionPatient] for image in images])
    order = np.argsort(position @ normal, kind="stable")
    images, position = [images[i] for i in order], position[order]
    step, notes = _check_positions(images, position, normal, path)
    _check_contrasts([(image.name, image.dataset) for image in images], path)
    down, right = (float(v) for v in images[0].dataset.PixelSpacing)
    affine = np.eye(4)
    # Slices are counted against the normal, as highdicom does for multi-frame images. The middle of the stack is placed
    # at the mean of all positions.
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = rows * right, columns * down, -normal * step
    affine[:3, 3] = position.mean(axis=0) + normal * step * (len(images) - 1) / 2
    return images[::-1], RAS_TO_LPS @ affine, notes


def _directions(orientation: NDArray[np.float64], path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the unit vectors along a row and along a column, orthogonal despite rounding in the tags."""
    rows, columns = orientation[:3], orientation[3:]
    lengths = float(np.linalg.norm(rows)), float(np.linalg.norm(columns))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(rows @ columns))) > _ROUNDED:
        values = ", ".join(f"{v:g}" for v in orientation)
        raise UserError(
            f"{path}: ImageOrientationPatient ({values}) does not consist of two perpendicular unit vectors, so the "
            "voxel size is uncertain; expected two perpendicular unit vectors. Export the series again"
        )
    rows = rows / lengths[0]
    columns = columns - (columns @ rows) * rows
    return rows, columns / np.linalg.norm(columns)


def _check_frames(images: Sequence[SeriesImage], path: Path) -> None:
    """Refuse files with several slices each: multi-frame images, and mosaics that show all slices in one image."""
    frames = [image.name for image in images if image.is_multi_frame]
    if frames:
        raise UserError(
            f"{path}: contains {len(images)} images, of which {len(frames)} are multi-frame ({some_of(frames)}); "
            "expected one multi-frame image, or one image per slice. Put each volume into a folder of its own"
        )
    mosaics = [i.name for i in images if "MOSAIC" in _upper_values(i.dataset.get("ImageType"))]
    if mosaics:
        raise UserError(
            f"{path}: {len(mosaics)} of {len(images)} images are mosaics, which show all slices of a volume side by "
            f"side ({some_of(mosaics)}); expected one slice per image. Convert the series to NIfTI with a program that "
            "splits mosaics, such as dcm2niix"
        )


def _check_identity(images: Sequence[SeriesImage], path: Path) -> None:
    """Refuse images of several patients or series under one series UID, such as that left empty by anonymisation."""
    # Some programs number the parts of a series; without a UID, the number is what tells series apart.
    for name in _IDENTITY if images[0].series else (*_IDENTITY, "SeriesNumber"):
        values = Counter(str(image.dataset.get(name, "")) for image in images)
        if len(values) > 1:
            few = values.most_common()[-1][0]
            odd = some_of(image.name for image in images if str(image.dataset.get(name, "")) == few)
            raise UserError(
                f"{path}: the {len(images)} images have the same SeriesInstanceUID, "
                f"{images[0].series or 'which is empty'}, but {len(values)} different values of {name}; expected "
                f"images of one series. Put every series into a folder of its own, starting with {odd}"
            )


def _check_tags(images: Sequence[SeriesImage], path: Path) -> None:
    """Refuse images without the tags that give their position, or with an invalid one, and colour images."""
    for image in images:
        tags = {name: _numbers(image.dataset, name) for name in _NEEDED}
        lacking = [name for name, numbers in tags.items() if numbers is None]
        if lacking:
            raise UserError(
                f"{path}: {image.name} lacks {', '.join(lacking)}, so its position in the patient is unknown; expected "
                "these tags in every image. Export the series again with them, or remove the file"
            )
        for name, numbers in tags.items():
            is_size = name not in ("ImagePositionPatient", "ImageOrientationPatient")
            if not numbers or len(numbers) != _NEEDED[name] or (is_size and min(numbers) <= 0):
                raise UserError(
                    f"{path}: {name} of {image.name} is invalid; expected {several(_NEEDED[name], 'number')}"
                    f"{' above 0' * is_size}, with a decimal point. Export the series again, or remove the file"
                )
        _check_colour(image, path)
        _check_bits(image, path)


def _check_bits(image: SeriesImage, path: Path) -> None:
    """Refuse intensities that do not begin at the lowest bit, as old scanners store them; pydicom takes the lowest."""
    stored, high = (image.dataset.get(name) for name in ("BitsStored", "HighBit"))
    if stored is not None and high is not None and high != stored - 1:
        raise UserError(
            f"{path}: HighBit of {image.name} is {high} with {stored} stored bits; expected {stored - 1}. Convert the "
            "series with a program that shifts the bits, such as dcm2niix, and use the NIfTI file"
        )


def _check_colour(image: SeriesImage, path: Path) -> None:
    """Refuse colours, also those of a palette, whose numbers are no intensities."""
    is_palette = image.dataset.get("PhotometricInterpretation") == "PALETTE COLOR"
    if is_palette or int(image.dataset.get("SamplesPerPixel", 1) or 1) != 1:
        which = "the numbers of colours in a palette" if is_palette else "colours"
        raise UserError(f"{path}: {image.name} contains {which}, expected one intensity per voxel")


def _numbers(dataset: Any, name: str) -> tuple[float, ...] | None:
    """Return the finite numbers of a tag; None if it is missing or empty, and no numbers if it holds something else."""
    try:
        value = dataset.get(name)
        items = np.atleast_1d(np.array(value, dtype=object))
        numbers = None if value in (None, "") else tuple(float(str(item)) for item in items)
    except ValueError:  # a text, such as a number with a decimal comma
        return ()
    return numbers if numbers is None or np.isfinite(numbers).all() else ()


def _check_sizes(images: Sequence[SeriesImage], path: Path) -> None:
    """Refuse images whose size differs from that of the others."""
    for name in _EQUAL:
        values = [tuple(np.atleast_1d(np.array(image.dataset.get(name), dtype=float))) for image in images]
        usual, _ = Counter(values).most_common(1)[0]
        odd = [(image, v) for image, v in zip(images, values, strict=True) if not np.allclose(v, usual, rtol=1e-4)]
        if odd:
            value, expected = (" x ".join(f"{n:g}" for n in numbers) for numbers in (odd[0][1], usual))
            raise UserError(
                f"{path}: {name} is {value} in {some_of(image.name for image, _ in odd)} and {expected} in the others; "
                "expected the same in all images. Move images of another series to a folder of their own"
            )


def _check_contrasts(images: Sequence[tuple[str, Any]], path: Path) -> None:
    """Refuse stacks of several echoes, b-values, or parts of complex images, at positions of their own.

    Args:
        images: Name and tags of each image or frame.
        path: File or folder to name in errors.
    """

    def refuse(tag: str, one: str, other: str, value: str, expected: str) -> None:
        raise UserError(
            f"{path}: {tag} is {value} in {one} and {expected} in {other}; expected images of one contrast. "
            "Split multi-echo, diffusion, Dixon and phase series into one folder per contrast"
        )

    for tag, tolerance in _CONTRAST.items():
        values = [(name, numbers[0]) for name, tags in images if (numbers := _numbers(tags, tag))]
        if values:
            (low, least), (high, most) = (end(values, key=lambda item: item[1]) for end in (min, max))
            if most - least > tolerance * abs(most):
                refuse(tag, low, high, f"{least:g}", f"{most:g}")
    for tag in ("ImageType", "FrameType"):
        kinds = [(name, _PARTS & _upper_values(tags.get(tag))) for name, tags in images]
        first, expected = kinds[0]
        for name, parts in kinds:
            if parts != expected:
                refuse(tag, first, name, *(" ".join(sorted(kind)) or "none" for kind in (expected, parts)))


def _frames_of(image: SeriesImage) -> list[tuple[str, Any]]:
    """Return a name for each frame of an enhanced image, and the tags of its functional groups."""
    frames = []
    for number, groups in enumerate(image.dataset.get("PerFrameFunctionalGroupsSequence", ()), 1):
        tags = type(groups)()
        for element in groups:
            if element.VR == "SQ":
                for item in element.value:
                    tags.update(item)
        frames.append((f"frame {number}", tags))
    return frames


def _check_positions(
    images: Sequence[SeriesImage], position: NDArray[np.float64], normal: NDArray[np.float64], path: Path
) -> tuple[float, list[str]]:
    """Return the distance between slices; refuse duplicate, missing, tilted and unevenly spaced slices."""
    if len(images) == 1:
        return float(images[0].dataset.get("SpacingBetweenSlices") or images[0].dataset.get("SliceThickness") or 1), []
    along = position @ normal
    steps = np.diff(along)
    step = float(np.median(steps[steps > 1e-3])) if (steps > 1e-3).any() else 0.0
    same = np.flatnonzero(steps < max(0.01 * step, 1e-3))
    if len(same):
        pairs = some_of((f"{images[i].name} and {images[i + 1].name}" for i in same.tolist()), _SHOWN)
        identities = [image.dataset.get("SOPInstanceUID") for image in images]
        copied = all(identities[i] and identities[i] == identities[i + 1] for i in same)
        raise UserError(
            f"{path}: has {len(images)} images at {len(images) - len(same)} positions ({pairs} "
            "have the same position); expected one image at each position. "
            + (
                "They are copies of the same images (equal SOPInstanceUID): remove the copies"
                if copied
                else "Split cine, multi-echo and diffusion series into one folder per phase, echo or b-value"
            )
        )
    gaps = np.flatnonzero(steps > 1.5 * step)
    if len(gaps):
        missing = int(sum(round(float(steps[gap]) / step) - 1 for gap in gaps))
        after = ", ".join(str(gap + 1) for gap in gaps)
        between = some_of((f"{images[g].name} and {images[g + 1].name}" for g in gaps.tolist()), _SHOWN)
        raise UserError(
            f"{path}: {several(missing, 'slice')} seem{'s' if missing == 1 else ''} to be missing: the {len(images)} "
            f"images are {step:.3g} mm apart, with gaps after number {after} along the stack, between {between}; "
            "expected equal distances. Export the series again"
        )
    sideways = position - np.outer(along, normal)
    drift = (sideways[-1] - sideways[0]) / (len(images) - 1)
    if np.linalg.norm(drift) > _JITTER * step:
        angle = np.degrees(np.arctan2(np.linalg.norm(drift), step))
        raise UserError(
            f"{path}: each slice is shifted sideways by {np.linalg.norm(drift):.3g} mm against the one before, from "
            f"{images[0].name} to {images[-1].name}, a tilt of {angle:.0f}°; expected slices stacked along their "
            "normal. Convert the series with a program that corrects the tilt, such as dcm2niix, and use the NIfTI file"
        )
    step = float((along[-1] - along[0]) / (len(images) - 1))
    even = position.mean(axis=0) + np.outer((np.arange(len(images)) - (len(images) - 1) / 2) * step, normal)
    off = np.linalg.norm(position - even, axis=1)
    if off.max() > _JITTER * step:
        uneven = [images[i] for i in np.argsort(-off) if off[i] > _JITTER * step]
        raise UserError(
            f"{path}: the slices are unevenly spaced, with deviations of up to {off.max():.3g} mm "
            f"({some_of(image.name for image in uneven)}); expected equal distances. Export the series again, or "
            "split it"
        )
    if off.max() > _NOTE_JITTER * step:
        return step, [f"slice positions that deviate by up to {off.max():.2g} mm were corrected to equal distances"]
    return step, []


def _pixels(image: SeriesImage, path: Path) -> NDArray[np.float32]:
    """Return the pixels of a slice ``[columns, rows]`` with its rescale slope and intercept applied.

    A slope that is missing, empty or 0 counts as 1, and such an intercept as 0, each by itself, as in ITK and dcm2niix;
    pydicom applies the one only if there is the other.
    """
    from pydicom.pixels.processing import apply_modality_lut  # noqa: PLC0415 - an extra

    _check_decoder(image, path)
    with reading(path, f"the pixels of {image.name} cannot be read", "the file is damaged. Copy it again"):
        stored = image.dataset.pixel_array
        if image.dataset.get("ModalityLUTSequence"):
            return np.asarray(apply_modality_lut(stored, image.dataset), dtype=np.float32).T
        slope, intercept = (float(image.dataset.get(f"Rescale{name}") or 0) for name in ("Slope", "Intercept"))
        return np.asarray(stored * (slope or 1.0) + intercept, dtype=np.float32).T


def _check_decoder(image: SeriesImage, path: Path) -> None:
    """Refuse pixels that no installed decoder can decompress, and name the package to install."""
    from pydicom.pixels.decoders.base import get_decoder  # noqa: PLC0415 - an extra

    syntax = image.dataset.file_meta.get("TransferSyntaxUID")
    try:
        if syntax is None or not syntax.is_compressed or not syntax.is_encapsulated:
            return
    except ValueError as error:  # of a manufacturer, or newer than pydicom
        raise UserError(
            f"{path}: the pixels of {image.name} are stored by a method that pydicom does not know (transfer syntax "
            f"{syntax}); export the series uncompressed"
        ) from error
    needed = next((packages for part, packages in _DECODERS.items() if part in syntax.name), "")
    try:
        usable = get_decoder(syntax).is_available
    except NotImplementedError:  # pydicom has none, whatever is installed
        usable, needed = False, ""
    if not usable:
        remedy = f"install a decoder: pip install {needed}" if needed else "export the series uncompressed"
        raise UserError(f"{path}: the pixels of {image.name} are compressed as {syntax.name}; {remedy}")
