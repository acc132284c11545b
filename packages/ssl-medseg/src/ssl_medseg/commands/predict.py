"""`ssl-medseg predict`: masks of images nobody has labelled, each on the grid of its image."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training.files import write_atomic
from contrastive_core.training.outputs import Outputs
from contrastive_core.training.progress import track
from ssl_medseg.datasets import DataOptions
from ssl_medseg.datasets.channel_groups import Wanted
from ssl_medseg.evaluation.uncertainty import quality
from ssl_medseg.io import Volume, read_volume, write_mask
from ssl_medseg.io.dicom import missing_for_seg, write_dicom_seg
from ssl_medseg.io.file_types import DICOM_ENDINGS, ENDINGS, stem, without_paths
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.mask import write_on_grid
from ssl_medseg.models.checkpoint import Segmenter, load_segmenter
from ssl_medseg.models.network import Refinement
from ssl_medseg.prediction import Segmented, find_images, segment, unread_files

_TROUBLE = (UserError, OSError, ValueError, RuntimeError, ArithmeticError, MemoryError)
_SHOWN = 10
_SUMMARY = "predictions.json"


@dataclass(frozen=True)
class PredictedCase:
    """What became of one image.

    Attributes:
        image: its name below the folder of images.
        mask: the file, relative to the output folder; empty if there is none.
        millilitres: volume of each structure; None where the size of a voxel is unknown.
        seconds: reading, segmenting and writing.
        quality: with `uncertainty`, the agreement of the predictions of the volume and of its mirror images, the mean
            over structures, in [0, 1]. A low one says that the mask needs a look; a high one does not prove it right.
        agreement: the same for each structure; None: found in none of the predictions.
        notes: what was found odd about the image, in plain words.
        error: why there is no mask.
    """

    image: str
    mask: str = ""
    millilitres: dict[str, float] | None = None
    seconds: float = 0.0
    quality: float | None = None
    agreement: dict[str, float | None] | None = None
    notes: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class PredictResult:
    """Where the masks are, and what became of every image.

    Attributes:
        out: Folder of the masks.
        cases: Every image.
        unread: Files of the folder of images that are not read, with the reason.
        replaced: Number of masks of an earlier run that were replaced.
        stale: Masks of an earlier run whose image failed or is not among those of this run.
    """

    out: Path
    cases: tuple[PredictedCase, ...]
    unread: tuple[str, ...] = ()
    replaced: int = 0
    stale: tuple[str, ...] = ()

    def __str__(self) -> str:
        seconds = [case.seconds for case in self.cases]
        text = f"{self.out}: {several(len(self.cases), 'mask')}, {np.mean(seconds):.2f} s per volume"
        noted = [f"{case.image}: {note}" for case in self.cases for note in case.notes]
        return "\n  ".join([text, *_shortened(noted), *self.remarks])

    @property
    def remarks(self) -> list[str]:
        """What there is to say beside the masks: files that were not read, masks of earlier runs."""
        found = []
        if self.replaced:
            found.append(f"{several(self.replaced, 'mask')} of an earlier run replaced")
        if self.stale:
            found.append(
                f"{several(len(self.stale), 'file')} of an earlier run left as they are, and not scored by evaluate: "
                f"{', '.join(_shortened(self.stale))}"
            )
        if self.unread:
            found.append(f"{several(len(self.unread), 'file')} not read: {'; '.join(_shortened(self.unread))}")
        return found


def predict(
    model: str,
    data: str,
    out: Path,
    *,
    split: Path | None = None,
    part: Literal["labelled", "validation", "test", "unlabelled"] = "test",
    mask_format: Literal["auto", "nifti", "dicom-seg"] = "auto",
    probabilities: bool = False,
    uncertainty: bool = False,
    keep_largest: bool | None = None,
    mirroring: bool | None = None,
    pictures: bool = False,
    batch_size: int = 16,
    device: str = "auto",
    overwrite: bool = False,
    opening: DataOptions = DataOptions(),  # noqa: B008 - frozen
) -> PredictResult:
    """Segment an image, or all images of a folder, and write masks that overlay on them in every viewer.

    A mask has the shape, affine, sform and qform with their codes, units and voxel sizes of its image, and the values
    of the labels the model was trained with. Of a DICOM series it is a DICOM segmentation (extra ``dicom``), or NIfTI
    where the series lacks what a segmentation must repeat. An image may be stored otherwise than those of training: it
    is turned to their orientation, cut in their plane and resampled to their pixels, and the mask comes back on its own
    voxels.

    A model of several channels (T2, ADC) takes a data set that names them, files that end in their names or numbers
    (``case_T2.nii.gz``, ``case_0000.nii.gz``), 4-D files, or the series of a DICOM study, by their descriptions. Where
    it is not stated which channel is which, ``--channels`` is asked for. A case that lacks a channel is named.

    Of a folder every image is tried, and of a DICOM folder every series. Masks lie in the output folder as the images
    do in theirs, and predictions.json beside them says what became of each, with volumes in mL, which files were not
    read, and which masks in the folder are of an earlier run. An image that fails is named at the end.

    Args:
        model: Run folder, its model folder, or the folder of an exported bundle.
        data: Image, folder of a DICOM series, folder of images at any depth, or data set.
        out: Folder of the masks; for a single image also the name of a file that ends in .nii.gz, .nii, .nrrd, .mha or
            .dcm.
        split: Split file of a data set; only one part of it is segmented.
        part: Part of the split to segment.
        mask_format: Format of the masks; auto writes DICOM segmentations of DICOM series and NIfTI of all else.
        probabilities: Also write the probability of every class, as NAME_probabilities.nii.gz with the classes along
            the fourth axis.
        uncertainty: Also write NAME_uncertainty.nii.gz, the entropy of the prediction in [0, 1] at each voxel, and a
            quality score of every case to predictions.json; takes four times as long.
        keep_largest: Keep only the largest connected part of each structure; as validation in training chose if not
            given.
        mirroring: Average over each slice and its mirror images; as validation in training chose if not given.
        pictures: Draw slices of every image with its mask, in radiological orientation, as NAME.png beside the mask.
        batch_size: Largest number of slices per forward pass; memory grows with it. A CPU takes as many as its caches
            hold.
        device: Device: auto, cpu, cuda or mps.
        overwrite: Replace files in the output folder that this command did not write. Images and labels of the data
            set are never replaced.
        opening: Channels and frame of images that have several, and how to open a data set; of single images a case in
            the table of frames is a file's name below the folder, without its ending.

    Returns:
        The files and what is in them.

    Raises:
        UserError: no images, no model, or images that could not be segmented: after all others have been.
    """
    if batch_size < 1:
        raise UserError(f"predict needs batch_size >= 1, got {batch_size}")
    segmenter = load_segmenter(model, device=device)
    found = find_images(Path(data), opening=opening, split=split, part=part, channels=segmenter.preprocessing.channels)
    folder, targets = _targets(found, out, mask_format)
    refinement = _refinement(segmenter, keep_largest=keep_largest, mirror=mirroring)
    planned = [
        path
        for target in targets
        for path in _files_of(
            target, mask_format, probabilities=probabilities, uncertainty=uncertainty, pictures=pictures
        )
    ]
    if folder == Path(out):
        planned.append(folder / _SUMMARY)
    read = [path for wanted in found for path in (*wanted.image.paths, wanted.label) if path is not None]
    with Outputs(planned, command="ssl-medseg predict", inputs=read, folder=folder, overwrite=overwrite):
        folder.mkdir(parents=True, exist_ok=True)
        before = _masks_in(folder) if folder == Path(out) else set()
        done = []
        for wanted, target in track(zip(found, targets, strict=True), total=len(found), what="volumes"):
            started = time.perf_counter()
            try:
                if wanted.error:
                    raise UserError(wanted.error)
                volume = read_volume(wanted.image)
                segmented = segment(
                    volume,
                    segmenter.network,
                    segmenter.preprocessing,
                    batch_size=batch_size,
                    probabilities=probabilities,
                    refinement=refinement,
                    uncertainty=uncertainty,
                )
                target, more = _writable(target, volume, mask_format)  # noqa: PLW2901
                _write(segmented, volume, target, segmenter.labels)
                if pictures:
                    _draw(segmented, volume, target, wanted.name, segmenter.labels)
                case = PredictedCase(
                    wanted.name,
                    mask=target.relative_to(folder).as_posix(),
                    millilitres=_millilitres(segmented.classes, volume, segmenter.labels.structures),
                    seconds=time.perf_counter() - started,
                    quality=None if segmented.agreement is None else round(quality(segmented.agreement), 4),
                    agreement=_by_structure(segmented.agreement, segmenter.labels.structures),
                    notes=(*segmented.notes, *more),
                )
            except _TROUBLE as error:
                why = without_paths(error, wanted.image.paths).replace(f"{folder}/", "") or type(error).__name__
                case = PredictedCase(wanted.name, error=why)
            done.append(case)
        written = {case.mask for case in done if case.mask}
        result = PredictResult(
            folder,
            tuple(done),
            unread=tuple(unread_files(Path(data), found)),
            replaced=len(before & written),
            stale=tuple(sorted(before - written)),
        )
        if folder == Path(out):
            _write_summary(result, segmenter)
    failed = [case for case in done if case.error]
    if failed:
        raise UserError(_failures(failed, result))
    return result


def _refinement(segmenter: Segmenter, *, keep_largest: bool | None, mirror: bool | None) -> Refinement:
    """That of the model, but for what is given."""
    chosen = segmenter.refinement
    if keep_largest is not None:
        chosen = replace(chosen, largest=tuple(range(1, len(segmenter.labels))) if keep_largest else ())
    return chosen if mirror is None else replace(chosen, mirror=mirror)


def _targets(found: list[Wanted], out: Path, mask_format: str) -> tuple[Path, list[Path]]:
    """The folder of all masks, and the file of each."""
    out = Path(out).expanduser()
    if out.name.lower().endswith((*ENDINGS, *DICOM_ENDINGS)):
        if len(found) > 1:
            raise UserError(f"{out}: is the name of one file, but there are {len(found)} images; name a folder")
        targets = [out]
        folder = out.parent
    else:
        dicom = [wanted.is_dicom if mask_format == "auto" else mask_format == "dicom-seg" for wanted in found]
        targets = [out / f"{w.name}{'.dcm' if d else '.nii.gz'}" for w, d in zip(found, dicom, strict=True)]
        folder = out
    for wanted, target in zip(found, targets, strict=True):
        source = Path(wanted.image.path)
        if target.suffix.lower() in DICOM_ENDINGS and not wanted.is_dicom:
            raise UserError(f"{source}: is no DICOM series, so no DICOM segmentation can refer to it; write .nii.gz")
    return folder, targets


def _files_of(target: Path, mask_format: str, *, probabilities: bool, uncertainty: bool, pictures: bool) -> list[Path]:
    """The files that may be written for an image: its mask and those beside it."""
    name = stem(target).removesuffix(".dcm")
    asked = {"_probabilities.nii.gz": probabilities, "_uncertainty.nii.gz": uncertainty, ".png": pictures}
    beside = [f"{name}{ending}" for ending, wanted in asked.items() if wanted]
    if mask_format == "auto" and target.suffix.lower() in DICOM_ENDINGS:
        beside.append(f"{name}.nii.gz")
    return [target, *(target.with_name(each) for each in beside)]


def _masks_in(folder: Path) -> set[str]:
    """Masks that lie in a folder already, relative to it."""
    endings = (*ENDINGS, *DICOM_ENDINGS)
    return {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and file.name.lower().endswith(endings) and not file.name.startswith(".")
        and not stem(file).endswith(("_probabilities", "_uncertainty"))
        and "evaluation" not in file.relative_to(folder).parts
    }  # fmt: skip


def _writable(target: Path, volume: Volume, mask_format: str) -> tuple[Path, list[str]]:
    """The file for a mask: NIfTI where no DICOM segmentation can refer to the series, and a note about that."""
    if mask_format != "auto" or target.suffix.lower() not in DICOM_ENDINGS:
        return target, []
    lacking = missing_for_seg(volume.image)
    if not lacking:
        return target, []
    return target.with_suffix(".nii.gz"), [
        f"no DICOM segmentation can refer to the series ({lacking}); NIfTI was written"
    ]


def _write(segmented: Segmented, volume: Volume, target: Path, labels: LabelMap) -> None:
    if target.suffix.lower() in DICOM_ENDINGS:
        write_dicom_seg(segmented.classes, volume, target, labels)
    else:
        write_mask(segmented.classes, volume, target, labels)
    if segmented.probabilities is not None:
        name = f"{stem(target).removesuffix('.dcm')}_probabilities.nii.gz"
        write_on_grid(segmented.probabilities.transpose(1, 2, 3, 0), volume, target.with_name(name))
    if segmented.uncertainty is not None:
        name = f"{stem(target).removesuffix('.dcm')}_uncertainty.nii.gz"
        write_on_grid(segmented.uncertainty, volume, target.with_name(name))


def _by_structure(
    agreement: Sequence[float | None] | None, structures: Sequence[str]
) -> dict[str, float | None] | None:
    if agreement is None:
        return None
    rounded = (None if value is None else round(value, 4) for value in agreement)
    return dict(zip(structures, rounded, strict=True))


def _draw(segmented: Segmented, volume: Volume, target: Path, name: str, labels: LabelMap) -> None:
    # Here, not above: masks need no matplotlib.
    from contrastive_core.app.report.figures import to_png  # noqa: PLC0415
    from ssl_medseg.reports.overlay import mask_sheet  # noqa: PLC0415

    figure = mask_sheet(volume, segmented.classes, name=name, structures=labels.structures)
    write_atomic(target.with_name(f"{stem(target).removesuffix('.dcm')}.png"), to_png(figure, dpi=110))


def _millilitres(classes: NDArray[np.uint8], volume: Volume, names: tuple[str, ...]) -> dict[str, float] | None:
    """Volume of each structure; None where the size of a voxel is unknown."""
    voxel = volume.grid.millilitres
    if voxel is None:
        return None
    counts = np.bincount(classes.ravel(), minlength=len(names) + 1)[1:]
    return {name: round(float(count * voxel), 4) for name, count in zip(names, counts, strict=True)}


def _write_summary(result: PredictResult, segmenter: Segmenter) -> None:
    card = {
        "format": "ssl-medseg predictions 1",
        "labels": segmenter.labels.to_json(),
        "cases": [asdict(case) for case in result.cases],
        "unread": list(result.unread),
        "stale": list(result.stale),
    }
    write_atomic(result.out / _SUMMARY, (json.dumps(card, indent=1) + "\n").encode())


def _failures(failed: list[PredictedCase], result: PredictResult) -> str:
    if len(result.cases) == 1:
        return f"{failed[0].image}: {failed[0].error}"
    lines = _shortened([f"{case.image}: {case.error}" for case in failed])
    noted = [f"{case.image}: {note}" for case in result.cases for note in case.notes]
    count = f"{len(failed)} of {len(result.cases)}"
    head = f"{count} images could not be segmented"
    if len(failed) < len(result.cases):
        head += f"; the masks of the others are in {result.out}"
    return "\n  ".join([head, *lines, *_shortened(noted), *result.remarks])


def _shortened(lines: Sequence[str]) -> list[str]:
    return [
        *lines[:_SHOWN],
        *([f"and {len(lines) - _SHOWN} more: see predictions.json"] if len(lines) > _SHOWN else []),
    ]
