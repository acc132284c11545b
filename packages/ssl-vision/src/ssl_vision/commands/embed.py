"""`ssl-vision embed`: write the features of a data set to a file, or draw a map."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.rng import derive, permutation
from contrastive_core.training.config import InferenceOptions
from contrastive_core.training.files import check_space, write_atomic
from contrastive_core.training.outputs import Outputs, run_files
from ssl_vision.data import ImageSet, Subset, input_files, open_images
from ssl_vision.data.dataset import ReadOptions
from ssl_vision.data.open import refuse_new_images
from ssl_vision.evaluation.features import extract, import_pyarrow, write_npz, write_parquet
from ssl_vision.models import EncoderOptions
from ssl_vision.models.model_folder import load_encoder

_FILES = {".npz": write_npz, ".parquet": write_parquet}
_PICTURES = (".png", ".svg")


def embed(
    model: str,
    data: str,
    out: Path,
    *,
    part: str = "train",
    inference: InferenceOptions = InferenceOptions(),  # noqa: B008 - frozen
    points: int = 2000,
    seed: int = 0,
    encoder: EncoderOptions | None = None,
    read: ReadOptions = ReadOptions(),  # noqa: B008
    overwrite: bool = False,
) -> Path:
    """Compute the features of images and write them to a file, or draw a map.

    The suffix of the file selects the format: ``.npz`` (arrays features, ids, paths, labels, classes; labels are -1 if
    there are none), ``.parquet`` (a row per image), ``.png`` or ``.svg`` (a map by PCA and t-SNE, coloured by class).

    Args:
        model: Run folder, model folder, ``pixels`` for the images themselves as features, or ``none`` with
            `encoder`.
        data: Image folder, CSV manifest or named data set; labels are not needed.
        out: File to write.
        part: Part of the data to embed.
        inference: Batch size and device.
        points: Largest number of images on the map, drawn at random.
        seed: Seed of all random draws: of the points and of the map.
        encoder: Network and its weights, if `model` is ``none``.
        read: Options for reading image files.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        Path of the file.
    """
    out = Path(out)
    ending = out.suffix.lower()
    if ending not in _FILES and ending not in _PICTURES:
        raise UserError(f"{out}: found the suffix {ending!r}, expected one of {', '.join([*_FILES, *_PICTURES])}")
    if ending == ".parquet":
        import_pyarrow()
    refuse_new_images([out], data, command="ssl-vision embed")
    output_files = Outputs(
        [out], command="ssl-vision embed", inputs=input_files(data, *run_files(model)), overwrite=overwrite
    )
    loaded_model = load_encoder(model, device=inference.device, encoder=encoder)
    images = open_images(data, split=part, channels=loaded_model.channels, read=read.for_model(loaded_model.bits))
    if ending in _FILES:
        size = (
            len(images)
            * int(getattr(loaded_model.encoder, "feature_dim", loaded_model.channels * loaded_model.image_size**2))
            * 4
        )
        check_space(out.parent, size, what=f"the features of {len(images):,} images", files=1)
        features = extract(loaded_model, images, batch_size=inference.batch_size)
        with output_files:
            _FILES[ending](out, features, images)
        return out
    indices = permutation(derive(seed, "map"), len(images))[:points].sort().values
    subset = Subset(images, indices.tolist())
    picture = _picture(
        extract(loaded_model, subset, batch_size=inference.batch_size),
        subset,
        ending,
        model=model,
        of=len(images),
        split=images.split,
        seed=seed,
    )
    with output_files:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, picture)
    return out


def _picture(features: Tensor, images: ImageSet, ending: str, *, model: str, of: int, split: str, seed: int) -> bytes:
    from contrastive_core.app.report.figures import to_png, to_svg  # noqa: PLC0415
    from ssl_vision.reports.feature_map import layout, map_figure  # noqa: PLC0415 - files need no matplotlib

    positions, method = layout(features.cpu().numpy().astype(np.float32), seed=seed)
    which = f"{of:,} images" if len(images) == of else f"{len(images):,} of {of:,} images, chosen at random"
    caption = (
        f"{which} of {images.name}, split {split}; {method}. Neighbours have similar features; the sizes of clusters "
        "and the distances between them have little meaning."
    )
    figure = map_figure(
        positions,
        labels=images.labels().numpy() if images.is_labelled else None,
        classes=images.classes,
        title=f"Features of {model}",
        caption=textwrap.fill(caption, 110),
    )
    return to_png(figure) if ending == ".png" else to_svg(figure)
