"""Export a segmenter as a MONAI bundle, and compare the masks of the bundle with those of the model."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

import ssl_medseg
from contrastive_core.errors import UserError
from contrastive_core.training import files
from contrastive_core.training.export import check_space_of, write_exported_program
from contrastive_core.training.outputs import Outputs, run_files
from ssl_medseg.exports.programs import card_of, program_of
from ssl_medseg.io import Grid, Volume, read_label, read_volume
from ssl_medseg.io.label_map import LabelMap
from ssl_medseg.io.mask import write_on_grid
from ssl_medseg.io.volume import ImageFile, join_channels
from ssl_medseg.models.model_folder import Segmenter, save_segmenter
from ssl_medseg.models.network import Refinement
from ssl_medseg.prediction import segment
from ssl_medseg.preprocessing import Preprocessing

_FIRST = "_0000.nii"
"""Ending of the files with the first channel, without .gz."""
_NAME = f"filename_or_obj=str(x.meta['filename_or_obj']).replace('{_FIRST}', '.nii')"
_LOGITS = "@inferer(case['image'][None].to(@device), @network_def)[0].cpu()"
_MIRRORED = "torch.softmax(@inferer(case['image'][None].flip(d).to(@device), @network_def), 1).flip(d)[0].cpu()"


def is_monai_enough(p: Preprocessing) -> bool:
    """Return whether MONAI's transforms can reproduce this preprocessing.

    They support neither a pixel size that depends on the image nor N4 bias-field correction.
    """
    return not p.fit and not p.n4


def inference_config(
    p: Preprocessing,
    labels: LabelMap,
    refinement: Refinement = Refinement(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Return the content of ``configs/inference.json``.

    If MONAI's transforms cannot reproduce the preprocessing, the configuration calls `ssl_medseg.predict`.

    Args:
        p: Preprocessing of the model.
        labels: Label map of the model.
        refinement: Test-time mirroring and largest components of the model.
    """
    config: dict[str, Any] = {
        "imports": [
            "$import torch",
            "$from pathlib import Path",
            "$from scipy.ndimage import gaussian_filter",
            "$from scipy.ndimage import label",
            "$import numpy",
        ],
        "bundle_root": ".",
        "dataset_dir": "images",
        "output_dir": "masks",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
    }
    if not is_monai_enough(p):
        config["imports"].append("$import ssl_medseg")
        predict = "ssl_medseg.predict(@bundle_root, Path(@dataset_dir), Path(@output_dir), mask_format='nifti')"
        return {**config, "run": [f"${predict}"]}
    return {
        **config,
        **_inputs(p),
        "network_def": "$torch.export.load(@bundle_root + '/models/network.pt2').module().to(@device)",
        "inferer": {
            "_target_": "SliceInferer",
            "roi_size": list(p.size),
            "sw_batch_size": 16,
            "spatial_dim": p.slice_axis,
        },
        "preprocessing": {"_target_": "Compose", "transforms": _before(p)},
        "postprocessing": {"_target_": "Compose", "transforms": _after(labels, refinement)},
        "segment": f"$torch.no_grad()(lambda case: {{**case, 'pred': {_prediction(p, mirror=refinement.mirror)}}})",
        "run": [
            "$[@postprocessing(@segment(@preprocessing(image))) for image in @images]"
            if len(p.channels) == 1
            else "$[@postprocessing(@segment(@preprocessing(@together(image)))) for image in @images]"
        ],
    }


def _inputs(p: Preprocessing) -> dict[str, Any]:
    """Return the configuration that lists the images and combines the files of several channels into one image."""
    if len(p.channels) == 1:
        images = "$[{'image': str(path)} for path in sorted(Path(@dataset_dir).glob('*.nii*'))]"
        return {"channel": 0, "images": images}
    # Not image_0, because Spacingd treats keys that start with image_ as metadata of the image.
    keys = [f"channel_{number}" for number in range(len(p.channels))]
    files = ", ".join(f"'{key}': str(path).replace('{_FIRST}', '_{number:04}.nii')" for number, key in enumerate(keys))
    chain: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": keys, "ensure_channel_first": True},
        {"_target_": "Lambdad", "keys": keys, "func": _RAISE_PADDING},
        # The minimum is shifted to 0, the value outside the field of view; scaling by percentiles is not affected.
        {"_target_": "Lambdad", "keys": keys[1:], "func": "$lambda x: x - x[x == x].min()"},
        {
            "_target_": "ResampleToMatchd",
            "keys": keys[1:],
            "key_dst": keys[0],
            "mode": "bilinear",
            "padding_mode": "zeros",
        },
        {"_target_": "ConcatItemsd", "keys": keys, "name": "image"},
        {"_target_": "Lambdad", "keys": "image", "func": f"$lambda x: (x.meta.update({_NAME}), x)[1]"},
    ]
    return {
        "images": f"$[{{{files}}} for path in sorted(Path(@dataset_dir).glob('*{_FIRST}*'))]",
        "together": {"_target_": "Compose", "transforms": chain},
    }


_EVALUATED = ("$", "@", "%")
"""Beginnings of the texts that MONAI evaluates, looks up or replaces in configurations."""


def metadata(p: Preprocessing, labels: LabelMap, *, versions: dict[str, str]) -> dict[str, Any]:
    """Return the content of ``configs/metadata.json``, in MONAI's format.

    Raises:
        UserError: MONAI would evaluate the name of a structure or channel as an expression or reference.
    """
    for name in (*labels.names, *p.channels):
        if name.startswith(_EVALUATED):
            raise UserError(
                f"the name {name!r} begins with {name[0]}, and MONAI evaluates such texts in the files of a bundle; "
                "rename the structure or channel in the data and train again, or export another format"
            )
    classes = {str(number): name for number, name in enumerate(labels.names)}
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": len(p.channels),
        "spatial_shape": list(p.size),
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": {str(number): name for number, name in enumerate(p.channels)},
    }
    answer = {**image, "format": "segmentation", "num_channels": len(labels), "channel_def": classes}
    del answer["modality"]
    own = {} if is_monai_enough(p) else {"ssl_medseg": ssl_medseg.__version__}
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by ssl-medseg"},
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"],
        "numpy_version": versions["numpy"],
        "required_packages_version": {name: versions[name] for name in ("nibabel", "scipy")} | own,
        "name": "ssl-medseg segmenter",
        "task": f"segmentation of {', '.join(labels.structures)} in MR images",
        "description": "A 2-D network over the slices of a volume, trained with few labels by ssl-medseg.",
        "authors": "",
        "copyright": "",
        "intended_use": "research; not a medical device",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": answer}},
    }


_RAISE_PADDING = (
    "$lambda x: (lambda low, smallest: x.clamp(min=-1024.0 if smallest < -512 else smallest) if low.numel() >= "
    "0.005 * x.numel() and (low == low.median()).float().mean() >= 0.9 else x)(x[x < -1500], "
    "float(x.where(x >= -1500, x.max()).min()))"
)
"""Expression of `ssl_medseg.preprocessing.prepare.raise_padding`."""


def _before(p: Preprocessing) -> list[dict[str, Any]]:
    low, high = p.percentiles
    chain: list[dict[str, Any]] = []
    if len(p.channels) == 1:
        chain = [
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
            {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x[@channel : @channel + 1]"},
            {"_target_": "Lambdad", "keys": "image", "func": _RAISE_PADDING},
        ]
    if p.fill_nan:
        chain.append({"_target_": "SignalFillEmptyd", "keys": "image"})
    if p.orientation:
        chain.append({"_target_": "Orientationd", "keys": "image", "axcodes": p.orientation})
    chain.append(
        {
            "_target_": "ScaleIntensityRangePercentilesd",
            "keys": "image",
            "lower": low,
            "upper": high,
            "b_min": 0.0,
            "b_max": 1.0,
            "clip": False,
            **({"channel_wise": True} if len(p.channels) > 1 else {}),
        }
    )
    if p.spacing is not None:
        sigma = _sigma(p)
        if any(sigma):
            chain.append({"_target_": "Lambdad", "keys": "image", "func": _smoothing([0.0, *_around(p, sigma, 0.0)])})
        pixdim = _around(p, p.spacing, -1.0)
        chain.append({"_target_": "Spacingd", "keys": "image", "pixdim": pixdim, "padding_mode": "border"})
    size = _around(p, p.size, -1)
    return [*chain, {"_target_": "ResizeWithPadOrCropd", "keys": "image", "spatial_size": size}]


def _prediction(p: Preprocessing, *, mirror: bool) -> str:
    """Return the expression of a case's prediction: logits, or probabilities averaged over four mirror images."""
    if not mirror:
        return _LOGITS
    first, second = (axis + 2 for axis in range(3) if axis != p.slice_axis)  # axes 0 and 1 are batch and channels
    return f"sum({_MIRRORED} for d in [[], [{second}], [{first}], [{first}, {second}]]) / 4"


def _after(labels: LabelMap, refinement: Refinement) -> list[dict[str, Any]]:
    chain: list[dict[str, Any]] = []
    if not refinement.mirror:  # with mirroring, the predictions are probabilities already
        chain.append({"_target_": "Activationsd", "keys": "pred", "softmax": True})
    chain += [
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    ]
    chain += [{"_target_": "Lambdad", "keys": "pred", "func": _largest(number)} for number in refinement.largest]
    classes = list(range(len(labels)))
    if list(labels.values) != classes:
        chain.append(
            {
                "_target_": "MapLabelValued",
                "keys": "pred",
                "orig_labels": classes,
                "target_labels": list(labels.values),
                "dtype": "$torch.int32",
            }
        )
    kind = "uint8" if min(labels.values) >= 0 and max(labels.values) < 256 else "int32"
    chain.append(
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "",
            "separate_folder": False,
            "resample": False,
            "output_dtype": kind,
            "print_log": False,
        }
    )
    return chain


def _largest(number: int) -> str:
    """Return the expression that keeps the largest component of a class; MONAI's own transform needs scikit-image."""
    keep = f"(x.numpy() != {number}) | (parts == 1 + numpy.bincount(parts.ravel(), minlength=2)[1:].argmax())"
    return (
        f"$lambda x: (lambda x, parts: x.clone().mul_(torch.as_tensor({keep})))"
        f"(x, label(x[0].numpy() == {number})[0][None])"
    )


def _smoothing(sigma: list[float]) -> str:
    """Return the expression of the Gaussian filter used in `prepare`.

    MONAI's filter differs: it pads with zeros and integrates the kernel over voxels.
    """
    return f"$lambda x: x.clone().copy_(torch.as_tensor(gaussian_filter(x.numpy(), {sigma}, mode='nearest')))"


def _sigma(p: Preprocessing) -> tuple[float, float]:
    """Return the standard deviation of smoothing before downsampling, in voxels of the typical training image.

    A bundle has one value for all images, whereas `prepare` computes it for every image.
    """
    if p.spacing is None or p.usual_spacing is None or not p.antialias:
        return 0.0, 0.0
    first, second = (max(0.0, (new / old - 1) / 2) for new, old in zip(p.spacing, p.usual_spacing, strict=True))
    return round(first, 4), round(second, 4)


def _around(p: Preprocessing, plane: tuple[float, float], along: float) -> list[float]:
    """Combine the values of the two in-plane axes with that of the slice axis."""
    values = list(plane)
    values.insert(p.slice_axis, along)
    return values


_LEAST_AGREEMENT = 0.99
_README = """# {name}

Segments {structures}. Made by ssl-medseg {version}; research software, not a medical device.

    python -m monai.bundle run --config_file configs/inference.json --meta_file configs/metadata.json \\
        --bundle_root . --dataset_dir IMAGES --output_dir MASKS

writes a mask for {inputs} in the folder IMAGES, with the label values {values}. It needs {needs}
(`pip install "monai[fire,nibabel]"`).

`ssl-medseg predict . IMAGES MASKS` does the same, and also reads DICOM series and nested folders. The two differ in a
few images: `ssl-medseg predict` converts units other than mm, computes the smoothing before downsampling from each
image (the bundle uses that of the training images), segments a single slice in its own plane, and reorients oblique
volumes stored in a different axis order from the training images. In oblique images, rounding in the header can shift
the first pixel of MONAI's slices by up to half a pixel.
"""


_BUNDLE = (
    "configs/inference.json",
    "configs/metadata.json",
    "docs/README.md",
    "docs/checked.json",
    "model/model.json",
    "model/model.safetensors",
    "models/network.pt2",
)
"""Files of a bundle, relative to its folder."""


def write_bundle(segmenter: Segmenter, source: str, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Write a MONAI bundle, after comparing its mask of a generated volume with that of the model.

    Args:
        segmenter: Model, on the CPU.
        source: Name of the model in errors.
        out: Folder for the bundle; files of an older bundle that `ssl-medseg export` wrote are replaced.
        overwrite: Whether to replace also files that it did not write, or that were changed since.

    Returns:
        Results of the comparisons.

    Raises:
        UserError: `out` is a folder with something else in it, a file of the bundle has been changed since, or the
            bundle gives other masks.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, expected a new or empty folder; choose another output")
    is_taken = out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir())
    if is_taken and not (out / "configs" / "metadata.json").is_file():
        raise UserError(f"{out}: contains something other than a MONAI bundle; expected a new or empty folder")
    outputs = Outputs(
        [out / name for name in _BUNDLE], command="ssl-medseg export", inputs=run_files(source), folder=out,
        overwrite=overwrite,
    )  # fmt: skip
    check_space_of(segmenter.network, out, copies=2)
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}.tmp")
    with outputs:  # also keeps a second export out of the temporary folder
        shutil.rmtree(new, ignore_errors=True)
        try:
            checked = _write(segmenter, source, new)
            with tempfile.TemporaryDirectory() as scratch:
                checked["bundle"] = _agreement(segmenter, new, Path(scratch))
            (new / "docs" / "checked.json").write_text(json.dumps(checked, indent=1) + "\n", encoding="utf-8")
            for name in _BUNDLE:
                files.sync(new / name)
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                files.put_in_place(new / name, out / name)
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
        refinement=segmenter.refinement,
    )
    program = new / "models" / "network.pt2"
    checked = write_exported_program(program_of(segmenter, source), program, card_of(segmenter, program))["checked"]
    versions = {name: importlib.metadata.version(name) for name in ("monai", "torch", "numpy", "nibabel", "scipy")}
    described = metadata(p, labels, versions=versions)
    for name, content in (("inference", inference_config(p, labels, segmenter.refinement)), ("metadata", described)):
        (new / "configs" / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    needs = (
        "MONAI, torch, nibabel and scipy"
        if is_monai_enough(p)
        else "ssl-medseg, because MONAI has no transforms for its preprocessing"
    )
    (new / "docs" / "README.md").write_text(
        _README.format(
            name=described["name"],
            structures=", ".join(labels.structures),
            version=ssl_medseg.__version__,
            values=labels,
            needs=needs,
            inputs=_describe_input(p),
        ),
        encoding="utf-8",
    )
    return {"network": checked}


def _describe_input(p: Preprocessing) -> str:
    """Describe the files from which an image is read."""
    if len(p.channels) == 1:
        return "every NIfTI file"
    files = ", ".join(f"CASE_{number:04}.nii.gz ({name})" for number, name in enumerate(p.channels))
    return f"every case, the NIfTI files {files}"


def _agreement(segmenter: Segmenter, bundle: Path, scratch: Path) -> dict[str, Any]:
    volume = usual_volume(segmenter)
    (scratch / "images").mkdir()
    names = segmenter.preprocessing.channels
    endings = [""] if len(names) == 1 else [f"_{number:04}" for number in range(len(names))]
    paths = [scratch / "images" / f"volume{ending}.nii.gz" for ending in endings]
    for path, array in zip(paths, volume.channels.values(), strict=True):
        write_on_grid(array, volume, path)
    _run_quietly(
        config_file=str(bundle / "configs" / "inference.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        bundle_root=str(bundle),
        dataset_dir=str(scratch / "images"),
        output_dir=str(scratch / "masks"),
        device="cpu",
    )
    theirs, _ = read_label(scratch / "masks" / "volume.nii.gz", segmenter.labels)
    channels = [ImageFile(path, name=name) for path, name in zip(paths, names, strict=True)]
    image = read_volume(join_channels(channels))
    ours = segment(image, segmenter.network, segmenter.preprocessing, refinement=segmenter.refinement).classes
    share = float((theirs == ours).mean()) if theirs.shape == ours.shape else 0.0
    if share < _LEAST_AGREEMENT:
        raise UserError(
            f"{bundle.name}: the masks of the bundle (run by monai.bundle) and of the model differ in {1 - share:.2%} "
            f"of the voxels of a generated volume; expected at most {1 - _LEAST_AGREEMENT:.0%}. Nothing was written. "
            "Please report this with the versions of torch and MONAI"
        )
    return {"with": f"monai.bundle {importlib.metadata.version('monai')}", "share_of_equal_voxels": share}


def _run_quietly(**arguments: str) -> None:
    """Run `monai.bundle run` without its log messages and warnings."""
    from monai.bundle.scripts import run  # noqa: PLC0415 - slow to import

    before, path = logging.root.manager.disable, sys.path.copy()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(**arguments)
    finally:
        logging.disable(before)
        sys.path[:] = path  # MONAI adds the folder of the bundle


def usual_volume(segmenter: Segmenter) -> Volume:
    """Generate a volume of random blobs with the spacing and orientation of the training images."""
    import nibabel  # noqa: PLC0415

    p = segmenter.preprocessing
    spacing = p.usual_spacing or p.spacing or (1.0, 1.0)
    target = p.spacing or spacing
    plane = [max(16, round(1.1 * n * t / s)) for n, t, s in zip(p.size, target, spacing, strict=True)]
    shape, sides = [*plane], [*spacing]
    shape.insert(p.slice_axis, 4)
    sides.insert(p.slice_axis, 4 * max(spacing))
    affine = np.diag([*sides, 1.0])
    if p.orientation:
        ornt = nibabel.orientations.axcodes2ornt(p.orientation)
        turn = np.zeros((4, 4))
        turn[3, 3] = 1
        for column, (row, sign) in enumerate(ornt):
            turn[int(row), column] = sign
        affine = turn @ affine
    first, *others = (_blobs(shape, seed) for seed in range(len(p.channels)))
    channels = [ImageFile(Path("generated.nii.gz"), name=name) for name in p.channels]
    x, y, z = first.shape
    return Volume(first, Grid((x, y, z), affine), join_channels(channels), others=tuple(others))


def _blobs(shape: Sequence[int], seed: int) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(size=shape)
    return np.asarray(sum(gaussian_filter(noise, s) * s**1.5 for s in (1, 3, 9)), dtype=np.float32)
