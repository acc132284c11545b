"""Features of a data set as a file that other programs read: NumPy's npz, or Parquet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_vision.data import ImageSet


def write_npz(file: Path, features: Tensor, images: ImageSet) -> None:
    """Write arrays that `numpy.load` reads without pickle.

    ``features`` float32 ``[N, D]``, ``ids`` int64 ``[N]``, ``paths`` text ``[N]``, ``labels`` int64 ``[N]`` (-1 without
    labels) and ``classes`` text ``[C]``, the names that labels count into. The same features give the same bytes.
    """
    labels = images.labels().numpy() if images.is_labelled else np.full(len(images), -1, dtype=np.int64)

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(
                stream,
                features=features.cpu().numpy(),
                ids=images.ids.numpy(),
                paths=np.array([images.path(i) for i in range(len(images))], dtype=np.str_),
                labels=labels,
                classes=np.array(images.classes, dtype=np.str_),
            )

    replace_file(file, write)


def write_parquet(file: Path, features: Tensor, images: ImageSet) -> None:
    """Write a table with a row per image: id, path, label and class (null without labels), features (list of float).

    Raises:
        UserError: pyarrow is not installed.
    """
    pyarrow, parquet = import_pyarrow()
    rows = features.cpu().numpy()
    labels = images.labels().tolist() if images.is_labelled else [None] * len(images)
    table = pyarrow.table(
        {
            "id": pyarrow.array(images.ids.numpy()),
            "path": pyarrow.array([images.path(i) for i in range(len(images))], pyarrow.string()),
            "label": pyarrow.array(labels, pyarrow.int64()),
            "class": pyarrow.array([None if n is None else images.classes[n] for n in labels], pyarrow.string()),
            "features": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), rows.shape[1]),
        }
    )
    replace_file(file, lambda path: parquet.write_table(table, path))


def import_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and its parquet module, or raise the error that says how to get them."""
    try:
        import pyarrow  # noqa: PLC0415 - an extra
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise UserError(
            "a .parquet file needs pyarrow, which is not installed; pip install 'ssl-vision[parquet]', or write .npz"
        ) from error
    return pyarrow, pyarrow.parquet


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Write beside the file and rename, so that a stop in the middle leaves no half of one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.tmp")
    try:
        write(new)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
