"""Run nnU-Net's predictor with a network of ssl-medseg, for `tools/bench/medseg_predict.py`."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_medseg.io.label_map import LabelMap

_RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def predictor(
    network: nn.Module, labels: LabelMap, *, size: int, spacing: tuple[float, float], batch_size: int = 2
) -> Any:
    """Return a predictor with a 2-D configuration as nnU-Net's planner writes it, without mirroring.

    One patch must cover a slice.

    Raises:
        ModuleNotFoundError: nnunetv2 is not installed.
    """
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, os.devnull)  # nnU-Net warns if they are missing, but reads nothing from them
    with contextlib.redirect_stdout(io.StringIO()):
        inference = importlib.import_module("nnunetv2.inference.predict_from_raw_data")
        plans = importlib.import_module("nnunetv2.utilities.plans_handling.plans_handler").PlansManager(
            _plans(size, spacing, batch_size)
        )
        nnunet_predictor = inference.nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": {name: place for place, name in enumerate(labels.names)},
        "file_ending": ".nii.gz",
    }
    configuration = plans.get_configuration("2d")
    nnunet_predictor.manual_initialization(
        network, plans, configuration, [network.state_dict()], dataset, "nnUNetTrainer", None
    )
    return nnunet_predictor


def predict(nnunet_predictor: Any, image: Path, mask: Path) -> None:
    """Segment an image file and write its mask."""
    name = str(mask).removesuffix(".nii.gz")
    with contextlib.redirect_stdout(io.StringIO()):
        nnunet_predictor.predict_from_files_sequential([[str(image)]], [name], save_probabilities=False, overwrite=True)


def _plans(size: int, spacing: tuple[float, float], batch_size: int) -> dict[str, Any]:
    resampling = {
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": _RESAMPLING,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**_RESAMPLING, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**_RESAMPLING, "order": 1},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size,
        "patch_size": [size, size],
        "median_image_size_in_voxels": [float(size), float(size)],
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
        "batch_dice": True,
        **resampling,
    }
    return {
        "dataset_name": "bench",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }
