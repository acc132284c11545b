"""How many labels a classifier has seen, itself or through its teacher."""

from __future__ import annotations

from pathlib import Path

from contrastive_core.errors import UserError
from ssl_vision.data import open_images
from ssl_vision.label_files import LabelFile, read_label_file
from ssl_vision.reporting.run_folder import RunSettings, open_run

_DEEPEST = 5  # teachers of teachers


def count_labels(settings: RunSettings, *, depth: int = 0) -> int | None:
    """Labelled images that a run has learnt from; of a distilled one, those of its teacher or its own, if more.

    None where that cannot be found out, because a label file, data or the teacher's run are gone.
    """
    if settings.kind != "distill":
        return _listed(settings)
    own = 0 if settings.config.get("alpha", 1.0) == 1 else _listed(settings)
    try:
        teacher = run_of(Path(str(settings.config["teacher"])))
        behind = count_labels(open_run(teacher).settings, depth=depth + 1) if depth < _DEEPEST else None
    except UserError:
        behind = None
    return None if behind is None or own is None else max(own, behind)


def run_of(model: Path) -> Path:
    """The run that a model folder lies in."""
    return model.parent if model.name == "model" else model


def _listed(settings: RunSettings) -> int | None:
    try:
        if settings.labels is None:
            return len(open_images(settings.data, split=settings.split))
        listed = read_label_file(Path(settings.labels))
    except UserError:
        return None
    return len(listed.images) if isinstance(listed, LabelFile) else len(listed)
