"""Formats that ssl-medseg reads: volumes, DICOM series, tables, splits, models and results."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import SimpleITK
import torch
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)

from ssl_medseg.datasets import Split, open_dataset, read_split, write_split
from ssl_medseg.datasets.dataset import Case
from ssl_medseg.datasets.splits import read_fingerprints
from ssl_medseg.evaluation.cases import find_masks
from ssl_medseg.evaluation.results import CaseScores, Evaluation, StructureScore, read_evaluation, write_evaluation
from ssl_medseg.io import ImageFile, read_volume
from ssl_medseg.io.label_map import LabelMap, read_label_map
from ssl_medseg.io.read import read_grid, read_label_values
from ssl_medseg.models import NetworkOptions, build_network
from ssl_medseg.models.model_folder import load_segmenter, save_segmenter
from ssl_medseg.phantom import write_phantom
from ssl_medseg.preprocessing import Preprocessing
from ssl_medseg.preprocessing.cases import prepare_cases
from ssl_medseg.selftraining.rounds import (
    PseudoCase,
    Round,
    read_pseudo_labels,
    read_rounds,
    write_pseudo_labels,
    write_round,
)
from tools.fuzz.core import document, sign_card
from tools.fuzz.format import Format, digest

_SHAPE = (6, 5, 4)
_AFFINE = np.diag([-1.0, -1.5, 3.0, 1.0])


def _array(dtype: Any = np.int16) -> np.ndarray[Any, Any]:
    return np.arange(int(np.prod(_SHAPE))).reshape(_SHAPE).astype(dtype)


def _make_nifti(suffix: str) -> Callable[[Path, str], list[Path]]:
    def make(root: Path, example: str) -> list[Path]:
        kind = nibabel.Nifti2Image if example == "version 2" else nibabel.Nifti1Image
        array = _array(np.float64 if example == "scaled" else np.uint8 if example == "label" else np.int16)
        if example == "big-endian":
            header = nibabel.Nifti1Header(endianness=">")
            image = nibabel.Nifti1Image(array, _AFFINE, header)
        else:
            image = kind(array, _AFFINE)
        if example == "scaled":
            image.header.set_data_dtype(np.int16)
        image.header.set_xyzt_units("mm")
        image.set_sform(_AFFINE, 1)
        image.set_qform(_AFFINE, 1)
        nibabel.save(image, root / f"x{suffix}")
        return [root / f"x{suffix}"]

    return make


_NIFTI = ("version 1", "version 2", "big-endian", "scaled", "label")


def _make_pair(root: Path, example: str) -> list[Path]:
    kind = {"NIfTI": nibabel.Nifti1Pair, "Analyze": nibabel.AnalyzeImage}[example]
    nibabel.save(kind(_array(), _AFFINE), root / "x.img")
    return [root / "x.hdr", root / "x.img"]


def _make_mgh(root: Path, example: str) -> list[Path]:
    nibabel.save(nibabel.MGHImage(_array(np.float32), _AFFINE), root / f"x{example}")
    return [root / f"x{example}"]


def _make_itk(root: Path, example: str) -> list[Path]:
    image: Any = SimpleITK.GetImageFromArray(_array())
    image.SetSpacing((1.0, 1.5, 3.0))
    image.SetOrigin((4.0, -5.0, 6.5))
    suffix, _, compressed = example.partition(" ")
    SimpleITK.WriteImage(image, str(root / f"x{suffix}"), bool(compressed))
    return sorted(root.iterdir())


def _read_volume(root: Path) -> str:
    file = next(
        f for f in sorted(root.iterdir()) if f.suffix not in (".hdr", ".raw", ".zraw") and f.name[-7:] != ".raw.gz"
    )
    volume = read_volume(ImageFile(file))
    grid = read_grid(ImageFile(file))
    values, _ = read_label_values(file)
    return digest(volume.array, volume.affine, grid.affine, values)


def _repack(root: Path) -> None:
    """Compress damaged content again, so that the checksum matches."""
    (file,) = root.iterdir()
    content = file.read_bytes()
    file.unlink()
    (root / "x.nii.gz").write_bytes(gzip.compress(content, mtime=0))


_SYNTAXES: dict[str, UID] = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big-endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
}
_COMPRESSED: dict[str, UID] = {
    "JPEG": JPEGBaseline8Bit,
    "JPEG in fragments": JPEGBaseline8Bit,
    "JPEG 2000": JPEG2000Lossless,
    "JPEG 2000, lossy": JPEG2000,
    "JPEG-LS": JPEGLSLossless,
    "RLE": RLELossless,
}
"""Compressed pixels: those of JPEG hold 8 bits, the others 16."""


def _make_series(root: Path, example: str) -> list[Path]:
    """Write four slices, or one file with these slices as frames."""
    folder = root / "series"
    folder.mkdir()
    slices = [_slice(z, _SYNTAXES.get(example, ExplicitVRLittleEndian)) for z in range(4)]
    if example == "multi-frame":
        from highdicom.legacy import LegacyConvertedEnhancedMRImage

        volume = LegacyConvertedEnhancedMRImage(slices, "1.2.9", 9, "1.2.10", 1)
        volume.save_as(folder / "x.dcm")
        return [folder / "x.dcm"]
    for z, dataset in enumerate(slices):
        if example == "big-endian":
            pydicom.dcmwrite(folder / f"{z}.dcm", dataset, little_endian=False, implicit_vr=False, force_encoding=True)
        else:
            dataset.save_as(folder / f"{z}.dcm", enforce_file_format=True)
    return sorted(folder.iterdir())


def _slice(z: int, syntax: UID) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, UID(f"1.2.3.{z + 1}")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = UID("1.2.4"), UID("1.2.5"), UID("1.2.6")
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "A^B", "1", "19700101", "F"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260101", "120000", "1", "1"
    ds.ReferringPhysicianName, ds.Manufacturer, ds.PositionReferenceIndicator = "", "x", ""
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber, ds.Laterality = "MR", 3, z + 1, ""
    ds.ImageType, ds.BurnedInAnnotation = ["ORIGINAL", "PRIMARY", "M", "NONE"], "NO"
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3 * z]
    ds.PixelSpacing, ds.SliceThickness = [1.5, 1.0], 3
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 5, 6, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1.5, 0, "US"
    ds.PixelData = _array(np.uint16)[:, :, z].T.tobytes()
    ds["PixelData"].VR = "OW"
    if syntax == RLELossless:
        ds.compress(RLELossless)
    elif syntax == ExplicitVRBigEndian:
        ds.PixelData = _array(">u2")[:, :, z].T.tobytes()
    return ds


def _make_compressed(root: Path, example: str) -> list[Path]:
    """Write four slices with compressed pixels, and the compressed stream of each slice as a separate file."""
    (root / "series").mkdir()
    (root / "streams").mkdir()
    for z in range(4):
        (root / "streams" / str(z)).write_bytes(_compressed_pixels(z, example))
        _write_compressed(root, z, example)
    (root / "example").write_text(example)
    return sorted((root / "series").iterdir())


def _make_streams(root: Path, example: str) -> list[Path]:
    _make_compressed(root, example)
    return sorted((root / "streams").iterdir())


def _wrap_streams(root: Path) -> None:
    """Write intact DICOM files around the damaged pixel streams."""
    for z in range(4):
        _write_compressed(root, z, (root / "example").read_text())


def _compressed_pixels(z: int, example: str) -> bytes:
    is_jpeg = _COMPRESSED[example] == JPEGBaseline8Bit
    ramp = np.arange(480).reshape(20, 24) // 2 + z
    pixels = ramp.astype(np.uint8) if is_jpeg else (200 * ramp).astype(np.uint16)
    if example in ("JPEG-LS", "RLE"):
        ds = _slice(z, ExplicitVRLittleEndian)
        ds.Rows, ds.Columns, ds.PixelData = 20, 24, pixels.tobytes()
        ds.compress(_COMPRESSED[example], generate_instance_uid=False)
        return next(generate_frames(ds.PixelData, number_of_frames=1))
    stream = io.BytesIO()
    if is_jpeg:
        Image.fromarray(pixels).save(stream, "JPEG")
    else:
        Image.fromarray(pixels).save(stream, "JPEG2000", no_jp2=True, irreversible=example != "JPEG 2000")
    return stream.getvalue()


def _write_compressed(root: Path, z: int, example: str) -> None:
    ds = _slice(z, ExplicitVRLittleEndian)
    ds.file_meta.TransferSyntaxUID = _COMPRESSED[example]
    ds.Rows, ds.Columns = 20, 24
    if _COMPRESSED[example] == JPEGBaseline8Bit:
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    stream = (root / "streams" / str(z)).read_bytes().ljust(2, b"\0")  # the least that can be a fragment
    fragments = 2 if example == "JPEG in fragments" and len(stream) > 4 else 1
    ds.PixelData = encapsulate([stream], fragments_per_frame=fragments)
    ds["PixelData"].VR = "OB"
    ds.save_as(root / "series" / f"{z}.dcm", enforce_file_format=True)


def _make_channels(root: Path, _: str) -> list[Path]:
    """Write a data set without checksums that has two channels, the second of which is on another grid."""
    for folder in ("imagesTr", "labelsTr"):
        (root / "data" / folder).mkdir(parents=True)
    shifted = _AFFINE.copy()
    shifted[0, 3] = 0.5
    files = [root / "data" / "imagesTr" / f"case1_000{channel}.nii" for channel in range(2)]
    for file, affine in zip(files, (_AFFINE, shifted), strict=True):
        nibabel.save(nibabel.Nifti1Image(_array(), affine), file)
    nibabel.save(nibabel.Nifti1Image(_array() % 2, _AFFINE), root / "data" / "labelsTr" / "case1.nii")
    card = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {"background": 0, "core": 1}, "numTraining": 1}
    (root / "data" / "dataset.json").write_text(json.dumps({**card, "file_ending": ".nii"}))
    return [*files, root / "data" / "dataset.json"]


def _read_channels(root: Path) -> str:
    dataset = open_dataset(root / "data")
    volumes = [read_volume(case.image) for case in dataset.cases]
    return digest([[volume.array, *volume.others, volume.affine, volume.warnings] for volume in volumes])


def _make_bids(root: Path, _: str) -> list[Path]:
    for patient in ("01", "02"):
        folder = root / "data" / f"sub-{patient}" / "anat"
        folder.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(_array(), _AFFINE), folder / f"sub-{patient}_T2w.nii.gz")
        nibabel.save(nibabel.Nifti1Image(_array() % 2, _AFFINE), folder / f"sub-{patient}_dseg.nii.gz")
    (root / "data" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    (root / "data" / "dseg.tsv").write_text("index\tname\n0\tbackground\n1\tcore\n")
    return [root / "data" / "dseg.tsv"]


def _make_cache(root: Path, _: str) -> list[Path]:
    _phantom(root)
    _read_cache(root)
    return sorted((root / "cache").iterdir())


def _read_cache(root: Path) -> str:
    """Read prepared cases through the cache, which recreates damaged entries."""
    dataset = open_dataset(root / "data")
    cases = prepare_cases(dataset, dataset.names, Preprocessing((32, 32)), labels=True, cache=root / "cache")
    return digest([[case.slices, case.label, str(case.geometry)] for case in cases])


def _read_series(root: Path) -> str:
    volume = read_volume(ImageFile(root / "series"))
    return digest(volume.array, volume.affine, volume.warnings)


def _phantom(root: Path) -> Any:
    write_phantom(root / "data", patients=3, frames=1, labelled=3, size=32)
    return open_dataset(root / "data")


def _make_list(root: Path, example: str) -> list[Path]:
    """Write a data set in the layout of the example, and return the documents that list its files."""
    _phantom(root)
    data = root / "data"
    if example == "decathlon":
        return [data / "dataset.json"]
    images = sorted((data / "imagesTr").iterdir())
    content = json.loads((data / "dataset.json").read_text())
    if example == "nnunet":
        for image in images:
            image.rename(image.with_name(image.name.replace(".nii", "_0000.nii")))
        labels = {name: int(value) for value, name in content["labels"].items()}
        cards = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": len(images), "file_ending": ".nii.gz"}
        (data / "dataset.json").write_text(json.dumps(cards, indent=1))
    return [data / "dataset.json"]


def _make_table(root: Path, _: str) -> list[Path]:
    dataset = _phantom(root)
    data = root / "data"
    rows = [["case", "patient", "image", "label", "split", "frame"]]
    rows += [
        [case.name, case.patient, case.image.path.relative_to(data).as_posix(),
         case.label.relative_to(data).as_posix(), "train", "0"] for case in dataset.cases
    ]  # fmt: skip
    (data / "labels.tsv").write_text("index\tname\n" + "".join(
        f"{value}\t{name}\n" for value, name in zip(dataset.labels.values, dataset.labels.names, strict=True)
    ))  # fmt: skip
    (data / "dataset.json").unlink()
    (data / "list.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    return [data / "list.csv", data / "labels.tsv"]


def _read_dataset(root: Path) -> str:
    source = next((f for f in (root / "data").iterdir() if f.suffix == ".csv"), root / "data")
    dataset = open_dataset(source)
    cases = [
        (c.name, c.patient, str(c.image.path.relative_to(root)), c.image.frame, c.label is None) for c in dataset.cases
    ]
    return digest(cases, str(dataset.labels))


def _make_split(root: Path, _: str) -> list[Path]:
    dataset = _phantom(root)
    names = dataset.names
    split = Split(names[:1], unlabelled=names[1:2], test=names[2:], settings={"seed": 3})
    write_split(root / "split.json", split, dataset)
    return [root / "split.json"]


def _read_split(root: Path) -> str:
    split = read_split(root / "split.json", open_dataset(root / "data"))
    return digest(split.parts, read_fingerprints(root / "split.json"))


def _sign_split(root: Path) -> None:
    from ssl_medseg.datasets.splits import PARTS, _digest

    try:
        content = json.loads((root / "split.json").read_bytes())
        parts = {part: [[str(name), str(patient)] for name, patient in content[part]] for part in PARTS}
        content["sha256"] = _digest(parts)
        (root / "split.json").write_text(json.dumps(content))
    except (ValueError, TypeError, KeyError, RecursionError):
        return


def _make_segmenter(root: Path, example: str) -> list[Path]:
    torch.manual_seed(0)
    options = NetworkOptions(example, 2) if example != "monai" else NetworkOptions("monai:BasicUNet", 4)
    labels = LabelMap(("background", "heart"), (0, 7))
    preprocessing = Preprocessing((32, 32), spacing=(1.5, 1.5), orientation="LPS")
    save_segmenter(
        root / "model", build_network(options, 2), options=options, labels=labels, preprocessing=preprocessing,
        details={"steps": 3},
    )  # fmt: skip
    return [root / "model" / "model.json"]


def _read_segmenter(root: Path) -> str:
    segmenter = load_segmenter(root / "model", device="cpu")
    return digest(
        segmenter.network.state_dict(), str(segmenter.labels), vars(segmenter.preprocessing), vars(segmenter.refinement)
    )


def _make_predicted(root: Path, _: str) -> list[Path]:
    (root / "masks").mkdir()
    for name in ("a", "b"):
        nibabel.save(nibabel.Nifti1Image(_array(np.uint8), _AFFINE), root / "masks" / f"{name}.nii.gz")
    cases = [{"case": "a", "image": "a.nii.gz", "mask": "a.nii.gz", "error": None},
             {"case": "c", "image": "c.nii.gz", "mask": None, "error": "is damaged"}]  # fmt: skip
    (root / "masks" / "predictions.json").write_text(json.dumps({"format": "x", "cases": cases, "stale": ["b.nii.gz"]}))
    return [root / "masks" / "predictions.json"]


def _read_predicted(root: Path) -> str:
    cases = [Case(name, name, ImageFile(root / f"{name}.nii.gz"), None) for name in ("a", "b")]
    masks, other_files = find_masks(root / "masks", cases)
    return digest({name: path.name for name, path in masks.items()}, other_files)


def _make_evaluation(root: Path, _: str) -> list[Path]:
    score = StructureScore("heart", "both", 0.9, 1.0, 0.5, 0.9, 10, 11, 1.0, 1.1, 0.1, 10.0)
    cases = (CaseScores("a", "a", (1.0, 1.0, 3.0), "test", (score,)), CaseScores("b", "b", None, "test", (score,)))
    write_evaluation(Evaluation("e", "d", "test", "mm", 2.0, ("heart",), cases, ("c",)), root / "x.json")
    return [root / "x.json"]


def _make_rounds(root: Path, _: str) -> list[Path]:
    half = {"heart": 0.5}
    entry = Round(1, 3, "teacher", 2, 2, 8, 0.5, {"heart": 0.5}, half, half, {"heart": 0})
    return [write_round(root, entry)]


def _make_pseudo(root: Path, _: str) -> list[Path]:
    label = torch.arange(2 * 4 * 4).remainder(2).to(torch.uint8).reshape(2, 4, 4)
    write_pseudo_labels(root / "x.safetensors", [PseudoCase("a", label, label), PseudoCase("b", 1 - label, label)])
    return [root / "x.safetensors"]


def _read_pseudo(root: Path) -> str:
    return digest([(case.name, case.label, case.predicted) for case in read_pseudo_labels(root / "x.safetensors")])


_NETWORKS = ("unet", "plain-unet", "monai")


def _read_evaluation(root: Path) -> str:
    return digest(vars(read_evaluation(root / "x.json")))


def _read_rounds(root: Path) -> str:
    return digest([vars(each) for each in read_rounds(root)])


FORMATS = (
    Format("NIfTI", _make_nifti(".nii"), _read_volume, _NIFTI, header=352),
    Format("NIfTI, gzip", _make_nifti(".nii.gz"), _read_volume, _NIFTI, has_checksum=True),
    Format("NIfTI, gzip, repacked", _make_nifti(".nii"), _read_volume, _NIFTI, header=352, sign=_repack),
    Format("NIfTI and Analyze pairs", _make_pair, _read_volume, ("NIfTI", "Analyze"), header=352),
    Format("MGH", _make_mgh, _read_volume, (".mgh", ".mgz"), header=284),
    Format("NRRD", _make_itk, _read_volume, (".nrrd", ".nrrd compressed", ".nhdr"), "lines"),
    Format("MetaImage", _make_itk, _read_volume, (".mha", ".mha compressed", ".mhd", ".mhd compressed"), "lines"),
    Format("DICOM series", _make_series, _read_series, tuple(_SYNTAXES), header=1500),
    Format("DICOM, compressed", _make_compressed, _read_series, tuple(_COMPRESSED), header=1500),
    Format("DICOM, compressed, repacked", _make_streams, _read_series, tuple(_COMPRESSED), header=100,
           sign=_wrap_streams),
    Format("DICOM, several frames", _make_series, _read_series, ("multi-frame",), header=4000),
    Format("label map", document("x.json", json.dumps({"labels": {"0": "background", "1": "core", "2": "shell"}})),
           lambda root: digest(str(read_label_map(root / "x.json"))), kind="json"),
    Format("label map, TSV", document("x.tsv", "index\tname\n0\tbackground\n1\tcore\n2\tshell\n"),
           lambda root: digest(str(read_label_map(root / "x.tsv"))), kind="csv"),
    Format("dataset.json", _make_list, _read_dataset, ("decathlon", "nnunet"), "json"),
    Format("channels of volumes", _make_channels, _read_channels, kind="json", header=352),
    Format("BIDS table", _make_bids, _read_dataset, kind="csv"),
    Format("cache of prepared volumes", _make_cache, _read_cache, has_checksum=True),
    Format("table of volumes", _make_table, _read_dataset, kind="csv"),
    Format("split of volumes", _make_split, _read_split, kind="json", has_checksum=True),
    Format("split of volumes, signed", _make_split, _read_split, kind="json", sign=_sign_split),
    Format("segmenter, signed", _make_segmenter, _read_segmenter, _NETWORKS, "json", sign=sign_card),
    Format("list of predictions", _make_predicted, _read_predicted, kind="json"),
    Format("evaluation of masks", _make_evaluation, _read_evaluation, kind="json"),
    Format("rounds of self-training", _make_rounds, _read_rounds, kind="json"),
    Format("pseudo-labels", _make_pseudo, _read_pseudo),
)  # fmt: skip
