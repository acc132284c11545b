"""Compute the accuracy of a linear classifier over the number of pre-training images, for several runs.

    python -m tools.gpu.linear_curve --data cifar10 --device cuda --out curve.json runs/simclr runs/suncet

Each run must have been trained by `ssl-vision pretrain --save-every`. Its models are scored in the order of their
epochs: features are computed once without augmentation, a linear classifier is trained on those of the training images,
and its top-1 accuracy is computed on the test images. Images are decoded once for all models. The file is written after
every model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ssl_vision.data import in_memory, open_images
from ssl_vision.data.dataset import ArrayImages, ImageSet
from ssl_vision.evaluation.features import extract
from ssl_vision.evaluation.probes import Cached, fit_linear
from ssl_vision.models.model_folder import load_encoder


def models(run: Path) -> Iterator[tuple[int, Path]]:
    """Return the number of training steps and the folder of each saved model of a run, in order of the steps."""
    for folder in sorted((run / "models").glob("epoch-*")):
        yield _steps(run, int(folder.name.removeprefix("epoch-"))), folder
    if (run / "model" / "model.json").is_file():
        yield _lines(run / "metrics.jsonl")[-1]["step"] + 1, run / "model"


def _steps(run: Path, epoch: int) -> int:
    """Return the number of steps until the end of an epoch, from the records, which count epochs as fractions."""
    record = _lines(run / "metrics.jsonl")[-1]
    steps: int = round(epoch * (record["step"] + 1) / record["epoch"])
    return steps


def inputs(run: Path, steps: int) -> int:
    """Return the number of images that passed through the network in a number of steps, counting each view."""
    record = _lines(run / "metrics.jsonl")[-1]
    count: int = round(record["inputs"] * steps / (record["step"] + 1))
    return count


def score(model: Path, train: ImageSet, test: ImageSet, *, device: str, epochs: int) -> float:
    """Compute the top-1 accuracy of a linear classifier in percent."""
    encoder = load_encoder(str(model), device=device)
    features = extract(encoder, train, batch_size=2048)
    classes = len(train.classes)
    labels = train.labels().to(features.device)
    classifier = fit_linear(
        Cached(features), labels, classes, features=features.shape[1], epochs=epochs,
        batch_size=min(512, len(labels)), lr=0.1, seed=0,
    )  # fmt: skip
    with torch.no_grad():
        predictions = classifier(extract(encoder, test, batch_size=2048)).argmax(1)
    return float(100 * (predictions == test.labels().to(predictions.device)).float().mean())


def decoded(data: str, part: str) -> ImageSet:
    """Load the images of a part into memory."""
    images = open_images(data, split=part)
    labels = images.labels().tolist()
    return ArrayImages(images.name, in_memory(images), labels=labels, classes=images.classes, split=part)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of ssl-vision pretrain")
    parser.add_argument("--data", required=True, help="labelled images with the parts train and test")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=30, help="number of epochs of the linear classifier")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    train, test = decoded(arguments.data, "train"), decoded(arguments.data, "test")
    curves: dict[str, list[dict[str, float]]] = {run.name: [] for run in arguments.runs}
    for run in arguments.runs:
        for steps, model in models(run):
            top1 = score(model, train, test, device=arguments.device, epochs=arguments.epochs)
            curves[run.name].append({"steps": steps, "images": inputs(run, steps), "top1": round(top1, 2)})
            arguments.out.write_text(json.dumps(curves, indent=1))
            print(run.name, curves[run.name][-1], flush=True)


if __name__ == "__main__":
    main()
