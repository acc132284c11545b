"""A segmenter as a MONAI bundle, run by `monai.bundle` before it is put in place."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

import ssl_medseg
from contrastive_core.errors import UserError
from contrastive_core.training import files
from contrastive_core.training.export import write_exported_program
from ssl_medseg.data.cases import ImageFile
from ssl_medseg.exporting.bundle_config import inference_config, is_monai_enough, metadata
from ssl_medseg.exporting.exportable import card_of, program_of
from ssl_medseg.model_folder import Segmenter, save_segmenter
from ssl_medseg.prediction.segment import segment
from ssl_medseg.volumes import Volume, read_label, read_volume
from ssl_medseg.volumes.mask import write_on_grid

_LEAST_AGREEMENT = 0.99
_README = """# {name}

Segments {structures}. Made by ssl-medseg {version}; research software, not a medical device.

    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
        --bundle_root . --dataset_dir IMAGES --output_dir MASKS

writes a mask for every NIfTI file of the folder IMAGES, with the values {values}. It needs {needs}
(`pip install "monai[fire,nibabel]"`).
`ssl-medseg predict . IMAGES MASKS` does it too, for DICOM series and folders in folders as well, and takes the axis of
the slices and their smoothing from every image, where the above takes those of the training images. Of oblique images
rounding in their header decides where MONAI puts the first pixel of a slice, by up to half a pixel.
"""


def write_bundle(segmenter: Segmenter, source: str, out: Path) -> dict[str, Any]:
    """Write a bundle, run it on a generated volume, compare its mask with ours, and put it in place.

    Args:
        segmenter: on the CPU.
        source: what errors call it.
        out: the folder, in place of an older bundle.

    Returns:
        How it was checked.

    Raises:
        UserError: `out` is a folder with something else in it, or the bundle gives other masks.
    """
    if out.exists() and not (out / "configs" / "metadata.json").is_file() and any(out.iterdir()):
        raise UserError(f"{out}: holds something else than a bundle; name a folder that is empty or not there yet")
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    try:
        checked = _write(segmenter, source, new)
        with tempfile.TemporaryDirectory() as scratch:
            checked["bundle"] = _agreement(segmenter, new, Path(scratch))
        (new / "docs" / "checked.json").write_text(json.dumps(checked, indent=1) + "\n", encoding="utf-8")
        for file in new.rglob("*"):
            files.sync(file)
        files.replace_folder(new, out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return checked


def _write(segmenter: Segmenter, source: str, new: Path) -> dict[str, Any]:
    p, labels = segmenter.preprocessing, segmenter.labels
    for folder in ("configs", "docs", "models"):
        (new / folder).mkdir(parents=True)
    save_segmenter(
        new / "model",
        segmenter.network,
        options=segmenter.options,
        labels=labels,
        preprocessing=p,
        details=segmenter.details,
    )
    program = new / "models" / "network.pt2"
    checked = write_exported_program(program_of(segmenter, source), program, card_of(segmenter, program))["checked"]
    versions = {name: importlib.metadata.version(name) for name in ("monai", "torch", "numpy", "nibabel", "scipy")}
    described = metadata(p, labels, versions=versions)
    for name, content in (("inference", inference_config(p, labels)), ("metadata", described)):
        (new / "configs" / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    needs = (
        "MONAI, torch, nibabel and scipy"
        if is_monai_enough(p)
        else "ssl-medseg, because no transform of MONAI does its work"
    )
    (new / "docs" / "README.md").write_text(
        _README.format(
            name=described["name"],
            structures=", ".join(labels.structures),
            version=ssl_medseg.__version__,
            values=labels,
            needs=needs,
        ),
        encoding="utf-8",
    )
    return {"network": checked}


def _agreement(segmenter: Segmenter, bundle: Path, scratch: Path) -> dict[str, Any]:
    volume = usual_volume(segmenter)
    (scratch / "images").mkdir()
    write_on_grid(volume.array, volume, scratch / "images" / "volume.nii.gz")
    _run_quietly(
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        bundle_root=str(bundle),
        dataset_dir=str(scratch / "images"),
        output_dir=str(scratch / "masks"),
        device="cpu",
    )
    theirs, _ = read_label(scratch / "masks" / "volume.nii.gz", segmenter.labels)
    read = read_volume(ImageFile(scratch / "images" / "volume.nii.gz"))
    ours = segment(read, segmenter.network, segmenter.preprocessing).classes
    share = float((theirs == ours).mean()) if theirs.shape == ours.shape else 0.0
    if share < _LEAST_AGREEMENT:
        raise UserError(
            f"{bundle.name}: run by monai.bundle it gives other masks than the model, in {1 - share:.2%} of the voxels "
            f"of a generated volume; expected at most {1 - _LEAST_AGREEMENT:.0%}. Nothing was written. Please report "
            "it with the versions of torch and MONAI"
        )
    return {"with": f"monai.bundle {importlib.metadata.version('monai')}", "share_of_equal_voxels": share}


def _run_quietly(**arguments: str) -> None:
    """`monai.bundle run`, which says much that only its own users need."""
    from monai.bundle.scripts import run  # noqa: PLC0415 - slow to import

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(**arguments)
    finally:
        logging.disable(before)


def usual_volume(segmenter: Segmenter) -> Volume:
    """A generated volume with the spacing and direction of the training images: blobs of all sizes."""
    import nibabel  # noqa: PLC0415

    p = segmenter.preprocessing
    spacing = p.usual_spacing or p.spacing or (1.0, 1.0)
    target = p.spacing or spacing
    plane = [max(16, round(1.1 * n * t / s)) for n, t, s in zip(p.size, target, spacing, strict=True)]
    shape, sides = [*plane], [*spacing]
    shape.insert(p.usual_axis, 4)
    sides.insert(p.usual_axis, 4 * max(spacing))
    affine = np.diag([*sides, 1.0])
    if p.orientation:
        ornt = nibabel.orientations.axcodes2ornt(p.orientation)
        turn = np.zeros((4, 4))
        turn[3, 3] = 1
        for column, (row, sign) in enumerate(ornt):
            turn[int(row), column] = sign
        affine = turn @ affine
    noise = np.random.default_rng(0).normal(size=shape)
    array: NDArray[np.float32] = sum(gaussian_filter(noise, s) * s**1.5 for s in (1, 3, 9)).astype(np.float32)
    return Volume(array, affine, ImageFile(Path("generated.nii.gz")))
