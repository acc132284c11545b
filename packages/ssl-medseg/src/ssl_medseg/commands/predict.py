"""Segment images and write masks on the grid of each image (`ssl-medseg predict`)."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from contrastive_core.errors import UserError
from contrastive_core.text import several, size
from contrastive_core.training.files import check_space, sha256, write_atomic
from contrastive_core.training.outputs import Outputs, run_files
from contrastive_core.training.progress import track
from ssl_medseg.datasets import DataOptions
from ssl_medseg.datasets.channel_groups import InputImage
from ssl_medseg.evaluation.uncertainty import quality
from ssl_medseg.io import Volume, read_volume, write_mask
from ssl_medseg.io.dicom_seg import missing_for_seg, write_dicom_seg
from ssl_medseg.io.file_types import DICOM_ENDINGS, ENDINGS, stem, without_paths
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.mask import PREDICTIONS, PREDICTIONS_FORMAT, masks_of_predict, write_on_grid
from ssl_medseg.models.model_folder import Segmenter, load_segmenter
from ssl_medseg.models.network import Refinement
from ssl_medseg.prediction import InferenceOptions, Segmented, bytes_of_masks, find_images, segment, unread_files
from ssl_medseg.reports.used_cases import images_seen

_TROUBLE = (UserError, OSError, ValueError, RuntimeError, ArithmeticError, MemoryError)
_SHOWN = 10
_INTERRUPTED = "predict was interrupted, or has not ended yet"


@dataclass(frozen=True)
class PredictedCase:
    """Result for one image.

    Attributes:
        image: Name of the image, relative to the folder of images.
        mask: Mask file, relative to the output folder; empty if there is none.
        sha256: Hash of the mask file, by which masks that somebody has corrected are recognised.
        millilitres: Volume of each structure; None if the voxel size is unknown.
        seconds: Time for reading, segmenting and writing.
        quality: With `uncertainty`, the agreement of the predictions of the volume and its mirror images (or quarter
            turns, if structures are named after a side of the body), averaged over structures, in [0, 1]. A low value
            means that the mask needs inspection; a high value does not guarantee a correct mask.
        agreement: Agreement for each structure; None if no prediction contains it.
        notes: Remarks about unusual properties of the image.
        error: Reason why there is no mask.
    """

    image: str
    mask: str = ""
    sha256: str = ""
    millilitres: dict[str, float] | None = None
    seconds: float = 0.0
    quality: float | None = None
    agreement: dict[str, float | None] | None = None
    notes: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class PredictResult:
    """Result of a prediction.

    Attributes:
        out: Folder of the masks.
        cases: Result for every image.
        unread: Files in the folder of images that were not read, with the reason.
        replaced: Number of masks from an earlier prediction that were replaced.
        stale: Other masks in the folder: those of an earlier prediction whose image failed or is no longer among the
            images, and labels drawn by hand.
    """

    out: Path
    cases: tuple[PredictedCase, ...]
    unread: tuple[str, ...] = ()
    replaced: int = 0
    stale: tuple[str, ...] = ()

    def __str__(self) -> str:
        seconds = [case.seconds for case in self.cases]
        text = f"{self.out}: {several(len(self.cases), 'mask')}, {np.mean(seconds):.2f} s per volume"
        notes = [f"{case.image}: {note}" for case in self.cases for note in case.notes]
        return "\n  ".join([text, *_shortened(notes), *self.remarks])

    @property
    def remarks(self) -> list[str]:
        """Remarks about files that were not read and masks that were already in the folder."""
        remarks = []
        if self.replaced:
            remarks.append(f"replaced {several(self.replaced, 'mask')} from an earlier prediction")
        if self.stale:
            remarks.append(
                f"kept {several(len(self.stale), 'mask')} that this run did not write, which evaluate will not score: "
                f"{', '.join(_shortened(self.stale))}"
            )
        if self.unread:
            remarks.append(f"{several(len(self.unread), 'file')} not read: {'; '.join(_shortened(self.unread))}")
        return remarks


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
    tta: bool | None = None,
    pictures: bool = False,
    inference: InferenceOptions = InferenceOptions(),  # noqa: B008 - frozen
    overwrite: bool = False,
    opening: DataOptions = DataOptions(),  # noqa: B008
) -> PredictResult:
    """Segment an image, or all images in a folder, and write masks that overlay on them in any viewer.

    A mask has the shape and geometry of its image (affine, sform and qform with their codes, units, voxel sizes) and
    the label values of the training data. For a DICOM series it is a DICOM segmentation (extra ``dicom``), or NIfTI if
    the series lacks attributes that a segmentation must repeat. Images may be stored in another orientation, plane or
    resolution than the training data: they are reoriented, resliced and resampled for the network, and the mask is
    mapped back to their voxels.

    A model with several channels (such as T2 and ADC) accepts a data set that names them, files that end in channel
    names or numbers (``case_T2.nii.gz``, ``case_0000.nii.gz``), 4-D files, or the series of a DICOM study, matched by
    their descriptions. Numbers mean what they meant in training; if the training data had none, ``--channels``
    is required. Cases that lack a channel are reported.

    Every image in a folder, and every series in a DICOM folder, is processed. The output folder has the same
    subfolders as the input. Its predictions.json lists the result for each image with volumes in mL, the files that
    were not read, and masks from earlier predictions. Images that fail are listed at the end.

    Args:
        model: Run folder, model folder, or folder of an exported MONAI bundle.
        data: Image, folder of a DICOM series, folder of images at any depth, or data set.
        out: Folder for the masks; for a single image also a file name ending in .nii.gz, .nii, .nrrd, .mha or .dcm.
        split: Split file of a data set, to segment only one part of it.
        part: Part of the split to segment.
        mask_format: Format of the masks; auto writes DICOM segmentations for DICOM series and NIfTI otherwise.
        probabilities: Also write the probability of every class as NAME_probabilities.nii.gz, with the classes along
            the fourth axis.
        uncertainty: Also write NAME_uncertainty.nii.gz, the entropy of the prediction in [0, 1] at each voxel, and add
            a quality score for every case to predictions.json; takes four times as long.
        keep_largest: Keep only the largest connected component of each structure; by default as chosen by validation in
            training.
        tta: Test-time augmentation: average the predictions of each slice and its mirror images; by default as chosen
            by validation in training.
        pictures: Draw slices of every image with its mask, in radiological orientation, as NAME.png next to the mask.
        inference: Batch size and device.
        overwrite: Whether to replace files that this command did not write. Images and labels of the data set are never
            replaced.
        opening: Options for opening the data set, and channels and frame of multi-channel or multi-frame images. For
            images outside a data set, the cases in the table of frames are file names relative to the folder, without
            extension.

    Returns:
        The masks and the result for each image.

    Raises:
        UserError: There are no images or no model, or some images could not be segmented; in the latter case, all
            others have been.
    """
    segmenter = load_segmenter(model, device=inference.device)
    settings = segmenter.preprocessing
    inputs = find_images(
        Path(data), opening=opening, split=split, part=part, channels=settings.channels,
        numbers=settings.channel_numbers,
    )  # fmt: skip
    folder, targets = _targets(inputs, out, mask_format)
    refinement = _refinement(segmenter, keep_largest=keep_largest, mirror=tta)
    files = [
        path
        for target in targets
        for path in _files_of(
            target, mask_format, probabilities=probabilities, uncertainty=uncertainty, pictures=pictures
        )
    ]
    if folder == Path(out):
        files.append(folder / PREDICTIONS)
    input_files = [path for source in inputs for path in (*source.image.paths, source.label) if path is not None]
    input_files += [*run_files(model), *filter(None, [split])]
    maps = len(segmenter.labels) * probabilities + uncertainty
    with Outputs(files, command="ssl-medseg predict", inputs=input_files, folder=folder, overwrite=overwrite):
        n_bytes = bytes_of_masks((source.image for source in inputs), maps=maps)
        check_space(folder, n_bytes, what=f"the outputs of {several(len(inputs), 'image')}", files=len(files))
        folder.mkdir(parents=True, exist_ok=True)
        before = _masks_in(folder) if folder == Path(out) else set()
        seen = images_seen(Path(model))
        if folder == Path(out):
            # Replaced at the end. If the command is interrupted, evaluate shall not mix the masks of two models.
            all_missing = tuple(PredictedCase(source.name, error=_INTERRUPTED) for source in inputs)
            unfinished = PredictResult(folder, all_missing, stale=tuple(sorted(before)))
            names = [target.relative_to(folder).as_posix() for target in targets]
            written = _written(folder)
            _write_summary(unfinished, segmenter, seen, written, unfinished=names)
        cases: list[PredictedCase] = []
        for source, target in track(zip(inputs, targets, strict=True), total=len(inputs), what="volumes"):
            start = time.perf_counter()
            try:
                if source.error:
                    raise UserError(source.error)
                volume = read_volume(source.image)
                prediction = segment(
                    volume,
                    segmenter.network,
                    segmenter.preprocessing,
                    batch_size=inference.batch_size,
                    precision=inference.precision,
                    probabilities=probabilities,
                    refinement=refinement,
                    uncertainty=uncertainty,
                    sided=bool(segmenter.labels.sided),
                )
                target, more = _writable(target, volume, mask_format)  # noqa: PLW2901
                _write(prediction, volume, target, segmenter.labels)
                if pictures:
                    _draw(prediction, volume, target, source.name, segmenter.labels)
                case = PredictedCase(
                    source.name,
                    mask=target.relative_to(folder).as_posix(),
                    sha256=sha256(target),
                    millilitres=_millilitres(prediction.classes, volume, segmenter.labels.structures),
                    seconds=time.perf_counter() - start,
                    quality=None if prediction.agreement is None else round(quality(prediction.agreement), 4),
                    agreement=_by_structure(prediction.agreement, segmenter.labels.structures),
                    notes=(*prediction.notes, *more),
                )
            except _TROUBLE as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    free, complete = shutil.disk_usage(folder).free, sum(1 for case in cases if case.mask)
                    raise UserError(
                        f"{target}: {error.strerror} ({size(free)} free); {complete} of {several(len(inputs), 'mask')} "
                        f"are complete in {folder}. Free some space, and repeat the command"
                    ) from error
                reason = without_paths(error, source.image.paths).replace(f"{folder}/", "") or type(error).__name__
                case = PredictedCase(source.name, error=reason)
            cases.append(case)
        masks = {case.mask for case in cases if case.mask}
        result = PredictResult(
            folder,
            tuple(cases),
            unread=tuple(unread_files(Path(data), inputs)),
            replaced=len(before & masks),
            stale=tuple(sorted(before - masks)),
        )
        if folder == Path(out):
            _write_summary(result, segmenter, seen, written)
    failed = [case for case in cases if case.error]
    if failed:
        raise UserError(_failures(failed, result))
    return result


def _refinement(segmenter: Segmenter, *, keep_largest: bool | None, mirror: bool | None) -> Refinement:
    """Return the refinement of the model, with the given options applied."""
    refinement = segmenter.refinement
    if keep_largest is not None:
        refinement = replace(refinement, largest=tuple(range(1, len(segmenter.labels))) if keep_largest else ())
    return refinement if mirror is None else replace(refinement, mirror=mirror)


def _targets(inputs: list[InputImage], out: Path, mask_format: str) -> tuple[Path, list[Path]]:
    """Return the folder of the masks and the file of each."""
    out = Path(out).expanduser()
    if out.name.lower().endswith((*ENDINGS, *DICOM_ENDINGS)):
        if len(inputs) > 1:
            raise UserError(f"{out} is a single file, but there are {len(inputs)} images; give a folder")
        targets = [out]
        folder = out.parent
    else:
        dicom = [source.is_dicom if mask_format == "auto" else mask_format == "dicom-seg" for source in inputs]
        targets = [out / f"{w.name}{'.dcm' if d else '.nii.gz'}" for w, d in zip(inputs, dicom, strict=True)]
        folder = out
    for source, target in zip(inputs, targets, strict=True):
        path = Path(source.image.path)
        if target.suffix.lower() in DICOM_ENDINGS and not source.is_dicom:
            raise UserError(
                f"{path} is not a DICOM series, so a DICOM segmentation cannot refer to it; write .nii.gz instead"
            )
    return folder, targets


def _files_of(target: Path, mask_format: str, *, probabilities: bool, uncertainty: bool, pictures: bool) -> list[Path]:
    """Return the files that may be written for an image: its mask and the files next to it."""
    name = stem(target).removesuffix(".dcm")
    flags = {"_probabilities.nii.gz": probabilities, "_uncertainty.nii.gz": uncertainty, ".png": pictures}
    beside = [f"{name}{ending}" for ending, flag in flags.items() if flag]
    if mask_format == "auto" and target.suffix.lower() in DICOM_ENDINGS:
        beside.append(f"{name}.nii.gz")
    return [target, *(target.with_name(each) for each in beside)]


def _masks_in(folder: Path) -> set[str]:
    """Return the masks that already exist in a folder, relative to it."""
    endings = (*ENDINGS, *DICOM_ENDINGS)
    return {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and file.name.lower().endswith(endings) and not file.name.startswith(".")
        and not stem(file).endswith(("_probabilities", "_uncertainty"))
        and "evaluation" not in file.relative_to(folder).parts
    }  # fmt: skip


def _writable(target: Path, volume: Volume, mask_format: str) -> tuple[Path, list[str]]:
    """Return the file for a mask, with a note if it is NIfTI because a DICOM segmentation cannot be written."""
    if mask_format != "auto" or target.suffix.lower() not in DICOM_ENDINGS:
        return target, []
    lacking = missing_for_seg(volume.image)
    if not lacking:
        return target, []
    return target.with_suffix(".nii.gz"), [
        f"wrote NIfTI, because a DICOM segmentation cannot refer to the series ({lacking})"
    ]


def _write(prediction: Segmented, volume: Volume, target: Path, labels: LabelMap) -> None:
    if target.suffix.lower() in DICOM_ENDINGS:
        write_dicom_seg(prediction.classes, volume, target, labels)
    else:
        write_mask(prediction.classes, volume, target, labels)
    if prediction.probabilities is not None:
        name = f"{stem(target).removesuffix('.dcm')}_probabilities.nii.gz"
        write_on_grid(prediction.probabilities.transpose(1, 2, 3, 0), volume, target.with_name(name))
    if prediction.uncertainty is not None:
        name = f"{stem(target).removesuffix('.dcm')}_uncertainty.nii.gz"
        write_on_grid(prediction.uncertainty, volume, target.with_name(name))


def _by_structure(
    agreement: Sequence[float | None] | None, structures: Sequence[str]
) -> dict[str, float | None] | None:
    if agreement is None:
        return None
    values = (None if value is None else round(value, 4) for value in agreement)
    return dict(zip(structures, values, strict=True))


def _draw(prediction: Segmented, volume: Volume, target: Path, name: str, labels: LabelMap) -> None:
    # Imported here, because masks without pictures do not need matplotlib.
    from contrastive_core.app.report.figures import to_png  # noqa: PLC0415
    from ssl_medseg.reports.overlay import mask_sheet  # noqa: PLC0415

    figure = mask_sheet(volume, prediction.classes, name=name, structures=labels.structures)
    write_atomic(target.with_name(f"{stem(target).removesuffix('.dcm')}.png"), to_png(figure, dpi=110))


def _millilitres(classes: NDArray[np.uint8], volume: Volume, names: tuple[str, ...]) -> dict[str, float] | None:
    """Return the volume of each structure; None if the voxel size is unknown."""
    voxel = volume.grid.millilitres
    if voxel is None:
        return None
    counts = np.bincount(classes.ravel(), minlength=len(names) + 1)[1:]
    return {name: round(float(count * voxel), 4) for name, count in zip(names, counts, strict=True)}


def _written(folder: Path) -> dict[str, str]:
    """Return the masks in a folder that earlier runs wrote, with hashes; none if their record cannot be read."""
    try:
        hashes = masks_of_predict(folder)
    except UserError:
        return {}  # the record is replaced
    return {name: digest or sha256(folder / name) for name, digest in hashes.items() if (folder / name).is_file()}


def _write_summary(
    result: PredictResult,
    segmenter: Segmenter,
    seen: Sequence[Mapping[str, str]],
    written: Mapping[str, str],
    *,
    unfinished: Sequence[str] = (),
) -> None:
    """Write predictions.json.

    Args:
        result: Result to describe.
        segmenter: Model that wrote the masks.
        seen: Images that the model was trained on.
        written: Masks of earlier runs, with the hash of each. Other files in the folder may have been drawn by hand.
        unfinished: Masks that are being replaced.
    """
    card = {
        "format": f"{PREDICTIONS_FORMAT} 1",
        "labels": segmenter.labels.to_json(),
        "cases": [asdict(case) for case in result.cases],
        "unread": list(result.unread),
        "stale": {name: written.get(name) for name in result.stale},
        "unfinished": list(unfinished),
        # Without the names of the cases, which may identify patients that do not belong to these masks.
        "training": [{key: image.get(key, "") for key in ("part", "image", "voxels")} for image in seen],
    }
    write_atomic(result.out / PREDICTIONS, (json.dumps(card, indent=1) + "\n").encode())


def _failures(failed: list[PredictedCase], result: PredictResult) -> str:
    if len(result.cases) == 1:
        return f"{failed[0].image}: {failed[0].error}"
    lines = _shortened([f"{case.image}: {case.error}" for case in failed])
    notes = [f"{case.image}: {note}" for case in result.cases for note in case.notes]
    count = f"{len(failed)} of {len(result.cases)}"
    head = f"{count} images could not be segmented"
    if len(failed) < len(result.cases):
        head += f"; the masks of the others are in {result.out}"
    return "\n  ".join([head, *lines, *_shortened(notes), *result.remarks])


def _shortened(lines: Sequence[str]) -> list[str]:
    return [
        *lines[:_SHOWN],
        *([f"and {len(lines) - _SHOWN} more: see predictions.json"] if len(lines) > _SHOWN else []),
    ]
