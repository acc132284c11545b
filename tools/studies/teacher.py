"""Distil a teacher with ImageNet weights and few labels into a small student on CIFAR-10.

    python -m tools.studies.teacher --data cifar10 --runs runs/few-labels --out docs/results/teacher.json \
        --weights lite0.pth

The weights are those of EfficientNet-Lite0, trained on ImageNet, with the names of timm's `tf_efficientnet_lite0`. A
linear classifier on its features is trained with the 500 labels of the first draw of `tools/studies/few_labels.py`. The
result teaches the encoder of that study on all training images. The table of that study contains the student without
teacher. The labels and the encoder of the student must be in the folder of runs. Commands with a result are not
repeated, and a killed distillation continues.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tools.results import provenance, write_result
from tools.studies.common import Job, Place, half_of, run_all

NETWORK, IMAGE_SIZE = "timm:tf_efficientnet_lite0", 96
LABELS, DRAW = 500, 0


def study(data: Path, runs: Path, weights: Path, *, epochs: int) -> list[Job]:
    """Return all commands in the order of their dependencies."""
    labels = str(runs / "labels" / f"{LABELS // 10}-per-class-draw{DRAW}.json")
    network, teacher, student = runs / "lite0", runs / "lite0-few", runs / _name(epochs)
    import_command = ("import-checkpoint", str(weights), str(network), "--architecture", NETWORK)
    few = ("few-labels", str(network), str(data), str(teacher), "--labels", labels, "--methods", "[linear,knn]")
    taught = (
        *("distill", str(teacher / "linear"), str(data), str(student), "--init", str(runs / "encoder")),
        *("--epochs", str(epochs), "--precision", "bf16-mixed", "--threads", "1", "--seed", "0"),
        *("--optimizer.name", "adamw", "--optimizer.lr", "1e-3", "--optimizer.scaling", "linear"),
    )
    return [
        Job("lite0", (*import_command, "--image-size", str(IMAGE_SIZE)), network / "model" / "model.json"),
        Job("lite0-few", (*few, "--seed", str(DRAW)), teacher / "few-labels.json", ("lite0",)),
        Job(_name(epochs), taught, student / "model" / "model.json", ("lite0-few",)),
        Place(data, runs).test(_name(epochs)),
    ]


def _name(epochs: int) -> str:
    return f"taught-{epochs}-epochs"


def _test_accuracies(file: Path) -> dict[str, float]:
    return {candidate["method"]: float(candidate["test"]) for candidate in json.loads(file.read_text())["candidates"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "runs", "out", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument(
        "--epochs", type=int, default=2, help="number of passes of the student over the training images"
    )
    arguments = parser.parse_args()
    epochs: int = arguments.epochs
    data = half_of(arguments.data, arguments.runs / "data")
    jobs = study(data, arguments.runs, arguments.weights, epochs=epochs)
    missing = run_all(jobs, logs=arguments.runs / "logs", workers=1)
    if missing:
        raise SystemExit(f"no results were written, because these jobs failed: {', '.join(missing)}")
    alone = _test_accuracies(arguments.runs / f"{LABELS}-labels-draw{DRAW}" / "few-labels.json")
    teacher = _test_accuracies(arguments.runs / "lite0-few" / "few-labels.json")
    taught = Place(arguments.data, arguments.runs).top1(_name(epochs))
    rows = [
        ["EfficientNet-Lite0 (ImageNet)", "linear classifier", teacher["linear"]],
        ["ResNet-18, an eighth of the channels", "linear classifier", alone["linear"]],
        ["ResNet-18, an eighth of the channels", "fine-tuned", alone["finetune"]],
        ["ResNet-18, an eighth of the channels", f"distilled from EfficientNet-Lite0, {epochs} epochs", taught],
    ]
    note = (
        f"Top-1 % on 10,000 test images with {LABELS} labels, one draw. All results of the small network start from "
        f"the same encoder (32 epochs of SimCLR on 25,000 images) at 32 px; the teacher receives crops enlarged to "
        f"{IMAGE_SIZE} px. The weights of EfficientNet-Lite0 come from supervised training on ImageNet, whose classes "
        "include those of CIFAR-10."
    )
    write_result(
        arguments.out,
        {
            "name": arguments.out.stem,
            **provenance(),
            "seeds": [DRAW],
            "config": {"commands": [job.line for job in jobs]},
            "table": {"columns": ["network", "training", "top-1 %"], "rows": rows},
            "notes": [note, f"Difference of distilled to fine-tuned: {taught - alone['finetune']:+.1f} points."],
        },
    )


if __name__ == "__main__":
    main()
