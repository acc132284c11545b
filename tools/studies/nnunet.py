"""Train nnU-Net (2-D) on the labelled patients of a split for a given CPU time, and segment the test patients.

    python -m tools.studies.nnunet --data data/acdc --split 2-labelled-draw1.json --out runs/nnunet --cpu_seconds 2000
    ssl-medseg evaluate runs/nnunet/masks data/acdc --split 2-labelled-draw1.json --part test --name nnunet

The script runs in a separate environment with nnunetv2, without the packages of this repository. Plans, preprocessing,
network, loss, augmentation, optimiser and mirrored prediction are those of nnU-Net. The learning rate decays to 0 over
the given CPU time of the training loop instead of 1,000 epochs. The last weights are used.

nnU-Net's plan for such data, two slices of full size per step, suits a GPU. `--pixels 96 --batch_size 12` edits it
to the sizes that ssl-medseg uses on a CPU; nnU-Net resamples the images and its masks.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch

_NAME = "Dataset001_Few"


def prepare(data: Path, split: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write the labelled cases in the layout of nnU-Net, and return the content of its dataset.json."""
    raw = out / "raw" / _NAME
    description = json.loads((data / "dataset.json").read_text())
    cases = [case for case, _ in split["labelled"]]
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for case in cases:
        shutil.copy(data / "imagesTr" / f"{case}.nii.gz", raw / "imagesTr" / f"{case}_0000.nii.gz")
        shutil.copy(data / "labelsTr" / f"{case}.nii.gz", raw / "labelsTr" / f"{case}.nii.gz")
    content = {
        "channel_names": {"0": "MRI"},
        "labels": {name: int(value) for value, name in description["labels"].items()},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(content))
    return content


def shrink(plans: Path, pixels: int, batch_size: int) -> None:
    """Edit nnU-Net's 2-D plan: smaller slices, a batch size, and as many stages as leave 6 pixels at the bottom."""
    content = json.loads(plans.read_text())
    plan = content["configurations"]["2d"]
    factor = max(plan["median_image_size_in_voxels"]) / pixels
    plan["spacing"] = [side * factor for side in plan["spacing"]]
    plan["median_image_size_in_voxels"] = [side / factor for side in plan["median_image_size_in_voxels"]]
    plan["patch_size"] = [16 * math.ceil(side / 16) for side in plan["median_image_size_in_voxels"]]
    plan["batch_size"] = batch_size
    network = plan["architecture"]["arch_kwargs"]
    network["n_stages"] = stages = min(network["n_stages"], int(math.log2(pixels / 6)) + 1)
    for name in ("features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage"):
        network[name] = network[name][:stages]
    network["n_conv_per_stage_decoder"] = network["n_conv_per_stage_decoder"][: stages - 1]
    plans.write_text(json.dumps(content))


def train(folder: Path, dataset: dict[str, Any], cases: list[str], *, seconds: float, every: int) -> Any:
    """Train for a given CPU time and return the trainer."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans = {**json.loads((folder / "nnUNetPlans.json").read_text()), "continue_training": False}
    (folder / "splits_final.json").write_text(json.dumps([{"train": cases, "val": cases}]))
    trainer = nnUNetTrainer(plans, "2d", 0, dataset, device=torch.device("cpu"))
    trainer.on_train_start()
    begun, step, elapsed = time.process_time(), 0, 0.0
    while (elapsed := time.process_time() - begun) < seconds:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - elapsed / seconds) ** 0.9
        trainer.network.train()
        loss = float(trainer.train_step(next(trainer.dataloader_train))["loss"])
        step += 1
        if step % every == 0:
            print(f"step {step}  loss {loss:.3f}  {elapsed:.0f} of {seconds:.0f} CPU s", flush=True)
    trainer.set_deep_supervision_enabled(False)
    configuration = plans["configurations"]["2d"]
    print(
        f"{step} steps of {configuration['batch_size']} slices of {configuration['patch_size']} pixels in "
        f"{elapsed:.0f} CPU s",
        flush=True,
    )
    return trainer


def predict(trainer: Any, dataset: dict[str, Any], images: list[Path], masks: Path) -> None:
    """Write the masks of images on their own grids, with mirrored views as in nnU-Net's prediction."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    trainer.network.eval()
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()],
        dataset, "nnUNetTrainer", trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip
    masks.mkdir(parents=True, exist_ok=True)
    for image in images:
        name = str(masks / image.name.removesuffix(".nii.gz"))
        predictor.predict_from_files_sequential([[str(image)]], [name], save_probabilities=False, overwrite=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder in the layout of the Medical Segmentation Decathlon"
    )
    parser.add_argument("--split", type=Path, required=True, help="split file of ssl-medseg make-splits")
    parser.add_argument("--out", type=Path, required=True, help="folder for all outputs")
    parser.add_argument("--cpu_seconds", type=float, required=True, help="CPU seconds of the training loop")
    parser.add_argument("--pixels", type=int, help="longer side of the median slice; by default that of the images")
    parser.add_argument("--batch_size", type=int, default=12, help="slices per step if --pixels is given")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=10, help="number of steps between two lines of output")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    os.environ |= {
        "nnUNet_raw": str(out / "raw"),
        "nnUNet_preprocessed": str(out / "preprocessed"),
        "nnUNet_results": str(out / "results"),
        "nnUNet_n_proc_DA": "1",
    }
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)
    split = json.loads(arguments.split.read_text())
    dataset = prepare(arguments.data, split, out)
    # Import after setting the environment variables, which nnU-Net reads on import.
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    extract_fingerprints([1], num_processes=1)
    plan_experiments([1])
    if arguments.pixels is not None:
        shrink(out / "preprocessed" / _NAME / "nnUNetPlans.json", arguments.pixels, arguments.batch_size)
    preprocess([1], configurations=("2d",), num_processes=(1,))
    cases = [case for case, _ in split["labelled"]]
    os.environ |= {
        "nnUNet_n_proc_DA": "0"
    }  # augment in this process, whose CPU time is measured; the planner does not accept 0
    torch.set_num_threads(1)
    trainer = train(out / "preprocessed" / _NAME, dataset, cases, seconds=arguments.cpu_seconds, every=arguments.every)
    images = [arguments.data.resolve() / "imagesTr" / f"{case}.nii.gz" for case, _ in split["test"]]
    predict(trainer, dataset, images, out / "masks")


if __name__ == "__main__":
    main()
