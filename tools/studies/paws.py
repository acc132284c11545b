"""Compare PAWS with SuNCEt and SimCLR on scikit-learn's digits with 10 labels per class.

    python -m tools.studies.paws --out docs/results/paws.json

The loops are those of docs/ssl-vision/own-model.md. All methods use the same number of images per step, the same number
of steps, and the same network, views, optimiser and schedule. SuNCEt and PAWS also use the labelled images in training.
The features are then classified with the same labels, by nearest neighbours and by logistic regression, whose penalty
is chosen by cross-validation on the labelled images. Nothing was tuned, so the losses are compared at settings chosen
for SimCLR, with the temperatures of the PAWS paper. The study takes a few CPU minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from contrastive_core import LARS, WarmupCosine, lars_param_groups, nt_xent, paws, suncet
from contrastive_core.rng import derive, permutation
from contrastive_core.training import ClassBatches
from ssl_vision.augment import SimCLRAugment
from ssl_vision.data import in_memory, open_images
from ssl_vision.evaluation.probes import choose_logistic, knn_scores
from ssl_vision.labels.choose import choose_per_class
from ssl_vision.methods import SimCLR
from ssl_vision.models import resnet
from tools.results import provenance, write_result
from tools.studies.common import mean_and_spread

Method = Literal["SimCLR", "SimCLR + SuNCEt", "PAWS"]
METHODS: tuple[Method, ...] = ("SimCLR", "SimCLR + SuNCEt", "PAWS")
SEEDS = (0, 1, 2)
PER_CLASS = 10
SUPPORTS = 50  # labelled images per step, five of each class
INPUTS = 178  # images per step: 2 x 89, or 2 x 64 and 50 labelled
TEMPERATURE = 0.2


def train(method: Method, pixels: Tensor, labels: Tensor, labelled: Tensor, *, steps: int, seed: int) -> SimCLR:
    """Pre-train an eighth-width ResNet-18 on views of 16 px."""
    torch.manual_seed(seed)
    model = SimCLR(resnet(18, width=0.125, stem="cifar"), projection_dim=64, layers=3)
    augment = SimCLRAugment(16, strength=0.6, flip=False, blur=False, gray=0.0)
    optimizer = LARS(lars_param_groups(model, weight_decay=1e-6), lr=0.0)
    schedule = WarmupCosine(optimizer, peak_lr=1.0, warmup_steps=steps // 10, total_steps=steps)
    supports = ClassBatches(labels[labelled], classes_per_batch=10, samples_per_class=SUPPORTS // 10, seed=seed)
    unlabelled = INPUTS // 2 if method == "SimCLR" else (INPUTS - SUPPORTS) // 2
    for step in range(steps):
        ids = permutation(derive(seed, "images", step), len(pixels))[:unlabelled]
        view_a, view_b = (augment(pixels[ids], seed=derive(seed, "view", step, view), ids=ids) for view in (0, 1))
        if method == "SimCLR":
            z_a, z_b = model(view_a, view_b)
            loss = nt_xent(z_a, z_b, temperature=TEMPERATURE)
        else:
            support_ids = labelled[supports.at(step).samples]
            third = augment(pixels[support_ids], seed=derive(seed, "labelled", step), ids=support_ids)
            z_a, z_b, z = model(view_a, view_b, third)
            if method == "PAWS":
                loss = torch.stack(paws(z_a, z_b, z, labels[support_ids])).sum()
            else:
                loss = nt_xent(z_a, z_b, temperature=TEMPERATURE) + suncet(
                    z, labels[support_ids], temperature=TEMPERATURE
                )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def score(model: SimCLR | None, train_set: tuple[Tensor, Tensor], test_set: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Compute top-1 % on the test images of classifiers fitted to the labelled images; without a model, on pixels."""

    def features(pixels: Tensor) -> Tensor:
        images = pixels.float() / 255
        if model is None:
            return images.flatten(1)
        return torch.as_tensor(model.encoder(torch.nn.functional.interpolate(images, size=16, mode="bicubic")))

    x, queries = features(train_set[0]), features(test_set[0])
    with torch.enable_grad():
        classifier = choose_logistic(x, train_set[1], 10).fit.classifier
    outputs = {"linear": classifier(queries), "neighbour": knn_scores(queries, x, train_set[1], num_classes=10, k=1)}
    return {name: 100 * float((logits.argmax(dim=1) == test_set[1]).float().mean()) for name, logits in outputs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images, test_images = open_images("digits"), open_images("digits", split="test")
    pixels, labels = in_memory(images), images.labels()
    test_set = in_memory(test_images), test_images.labels()
    accuracies: dict[str, list[dict[str, float]]] = {name: [] for name in ("raw pixels", *METHODS)}
    for seed in SEEDS:
        labelled = choose_per_class(labels, images.classes, PER_CLASS, seed=derive(seed, "labels"))
        train_set = pixels[labelled], labels[labelled]
        accuracies["raw pixels"].append(score(None, train_set, test_set))
        for method in METHODS:
            model = train(method, pixels, labels, labelled, steps=arguments.steps, seed=seed)
            accuracies[method].append(score(model, train_set, test_set))
            print(method, seed, accuracies[method][-1], flush=True)
    kinds = ("linear", "neighbour")
    rows = [
        [name, *(mean_and_spread([run[kind] for run in runs]) for kind in kinds)] for name, runs in accuracies.items()
    ]
    gains = {
        kind: [
            ours[kind] - peer[kind]
            for ours, peer in zip(accuracies["PAWS"], accuracies["SimCLR + SuNCEt"], strict=True)
        ]
        for kind in kinds
    }
    write_result(
        arguments.out,
        {
            "name": arguments.out.stem,
            **provenance(),
            "seeds": list(SEEDS),
            "config": {"steps": arguments.steps, "inputs per step": INPUTS, "labels per class": PER_CLASS},
            "table": {"columns": ["pre-training", "linear top-1 %", "nearest neighbour top-1 %"], "rows": rows},
            "notes": [
                f"364 test digits, {PER_CLASS} labelled images of each class, and three seeds with different labelled "
                f"images. ResNet-18 with an eighth of the channels, {arguments.steps} steps of {INPUTS} images at "
                f"16 px; with SuNCEt and PAWS, {SUPPORTS} of these are labelled. Nothing was tuned for any method.",
                *(
                    f"Difference of PAWS to SuNCEt, {kind}: {', '.join(f'{gain:+.1f}' for gain in gains[kind])} points "
                    "by seed."
                    for kind in kinds
                ),
            ],
            "accuracies": accuracies,
        },
    )


if __name__ == "__main__":
    main()
