"""Masks of the cases to be evaluated, by a trained segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contrastive_core.errors import UserError
from contrastive_core.training.progress import track
from ssl_medseg.data.cases import Case, DataSet
from ssl_medseg.data.files import without_path
from ssl_medseg.model_folder import load_segmenter
from ssl_medseg.prediction.segment import segment
from ssl_medseg.volumes import read_volume, write_mask


@dataclass(frozen=True)
class Predicted:
    """What became of the cases.

    Attributes:
        masks: case -> file.
        failed: case -> why it has none.
        labelled: names of the cases the segmenter was trained on with their labels, as its model says.
    """

    masks: dict[str, Path]
    failed: dict[str, str]
    labelled: tuple[str, ...]


def is_model(path: Path) -> bool:
    """Whether a folder is that of a run or of a model, and not one of masks."""
    return (path / "model.json").is_file() or (path / "model" / "model.json").is_file()


def predict_cases(
    model: Path, dataset: DataSet, cases: Sequence[Case], folder: Path, *, batch_size: int, device: str
) -> Predicted:
    """Segment cases and write their masks.

    Args:
        model: a run folder or model folder.
        dataset: of the cases.
        cases: to be segmented.
        folder: of the masks, one NIfTI file per case.
        batch_size: slices per forward pass.
        device: auto, cpu, cuda or mps.

    Raises:
        UserError: no model, or one of other structures than the data set's.
    """
    segmenter = load_segmenter(model, device=device)
    if segmenter.labels != dataset.labels:
        raise UserError(
            f"{model}: was trained for {segmenter.labels}, and {dataset.name} has {dataset.labels}; expected the same "
            "names and values. Give the label map of training (--label_map)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    masks: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for case in track(cases, total=len(cases), what="volumes"):
        try:
            volume = read_volume(case.image)
            found = segment(volume, segmenter.network, segmenter.preprocessing, batch_size=batch_size)
            path = folder / f"{case.name}.nii.gz"
            write_mask(found.classes, volume, path, dataset.labels)
            masks[case.name] = path
        except UserError as error:
            failed[case.name] = without_path(error, case.image.path)
    return Predicted(masks, failed, tuple(segmenter.details.get("labelled", ())))
