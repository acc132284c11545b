"""The configuration of a MONAI bundle: what `python -m monai.bundle run` does with images."""

from __future__ import annotations

from typing import Any

import ssl_medseg
from ssl_medseg.data.label_map import LabelMap
from ssl_medseg.preprocessing import Preprocessing

_ANSWER = "@inferer(case['image'][None].to(@device), @network_def)[0].cpu()"


def is_monai_enough(p: Preprocessing) -> bool:
    """Whether MONAI's transforms can do this preprocessing; they know no size that depends on the image, and no N4."""
    return not p.fit and not p.n4


def inference_config(p: Preprocessing, labels: LabelMap) -> dict[str, Any]:
    """The content of ``configs/inference.json``."""
    config: dict[str, Any] = {
        "imports": ["$import torch", "$from pathlib import Path", "$from scipy.ndimage import gaussian_filter"],
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
        "channel": 0,
        "images": "$[{'image': str(path)} for path in sorted(Path(@dataset_dir).glob('*.nii*'))]",
        "network_def": "$torch.export.load(@bundle_root + '/models/network.pt2').module().to(@device)",
        "inferer": {
            "_target_": "SliceInferer",
            "roi_size": list(p.size),
            "sw_batch_size": 16,
            "spatial_dim": p.usual_axis,
        },
        "preprocessing": {"_target_": "Compose", "transforms": _before(p)},
        "postprocessing": {"_target_": "Compose", "transforms": _after(labels)},
        "segment": f"$torch.no_grad()(lambda case: {{**case, 'pred': {_ANSWER}}})",
        "run": ["$[@postprocessing(@segment(@preprocessing(image))) for image in @images]"],
    }


def metadata(p: Preprocessing, labels: LabelMap, *, versions: dict[str, str]) -> dict[str, Any]:
    """The content of ``configs/metadata.json``, in MONAI's format."""
    channels = {str(number): name for number, name in enumerate(labels.names)}
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 1,
        "spatial_shape": list(p.size),
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": {"0": "image"},
    }
    answer = {**image, "format": "segmentation", "num_channels": len(labels), "channel_def": channels}
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


def _before(p: Preprocessing) -> list[dict[str, Any]]:
    low, high = p.percentiles
    chain: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x[@channel : @channel + 1]"},
    ]
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
        }
    )
    if p.fill_nan:
        chain.insert(2, {"_target_": "SignalFillEmptyd", "keys": "image"})
    if p.spacing is not None:
        sigma = _sigma(p)
        if any(sigma):
            chain.append({"_target_": "Lambdad", "keys": "image", "func": _smoothing([0.0, *_around(p, sigma, 0.0)])})
        pixdim = _around(p, p.spacing, -1.0)
        chain.append({"_target_": "Spacingd", "keys": "image", "pixdim": pixdim, "padding_mode": "border"})
    size = _around(p, p.size, -1)
    return [*chain, {"_target_": "ResizeWithPadOrCropd", "keys": "image", "spatial_size": size}]


def _after(labels: LabelMap) -> list[dict[str, Any]]:
    chain: list[dict[str, Any]] = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    ]
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


def _smoothing(sigma: list[float]) -> str:
    """SciPy's filter, as in `prepare`: MONAI's sees zeros outside of the image and integrates over the voxels."""
    return f"$lambda x: x.clone().copy_(torch.as_tensor(gaussian_filter(x.numpy(), {sigma}, mode='nearest')))"


def _sigma(p: Preprocessing) -> tuple[float, float]:
    """Of the smoothing before pixels grow, in voxels of the usual image: a configuration has one for all images."""
    if p.spacing is None or p.usual_spacing is None or not p.antialias:
        return 0.0, 0.0
    first, second = (max(0.0, (new / old - 1) / 2) for new, old in zip(p.spacing, p.usual_spacing, strict=True))
    return round(first, 4), round(second, 4)


def _around(p: Preprocessing, plane: tuple[float, float], along: float) -> list[float]:
    """Values for three axes from those of the plane and that along the slices."""
    values = list(plane)
    values.insert(p.usual_axis, along)
    return values
