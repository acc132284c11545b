"""Test the claim of SuNCEt on CIFAR-10 that few labels reach SimCLR's accuracy with less compute.

    python -m tools.studies.suncet --data cifar10 --runs runs/few-labels --out docs/results/suncet.json

SimCLR is trained with and without SuNCEt, with equal network inputs (506 and 512 per step), number of steps, learning
rate and schedule. The encoders after a quarter, half, three quarters and all of the budget are fine-tuned with the 10 %
of the labels that SuNCEt used. The same network is also trained on these labels alone. Fine-tuning was tuned on a
validation part of the training images with the SimCLR encoder of seed 0; SuNCEt was not tuned. No choice depends on
test images. Commands with a result are not repeated.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

from contrastive_core.app.report.figures import MUTED, SERIES, new_figure, plain_axes, to_png
from tools.studies.common import PRETRAIN, SEEDS, Job, Place, mean_and_spread, parse, perform, write

SHARES = (25, 50, 75, 100)
# Epochs of 25,000 images in a quarter of the budget: two of 97 steps with 512 views, one of 195 with 256 + 250 views.
EPOCHS_OF_A_QUARTER = {"simclr": 2, "suncet": 1}
BUDGET = {"simclr": 8 * 97 * 2 * 256, "suncet": 4 * 195 * (2 * 128 + 250)}
METHODS = {"simclr": "SimCLR", "suncet": "SimCLR + SuNCEt"}
PERCENT = 10


def study(place: Place) -> list[Job]:
    """Return all commands in the order of their dependencies."""
    jobs = [place.labels(), *(place.pretraining("simclr", seed) for seed in SEEDS)]
    for seed in SEEDS:
        jobs.append(suncet(place, seed))
        for method, share in itertools.product(METHODS, SHARES):
            model, after = model_after(place, method, share, seed), f"{method}-s{seed}"
            jobs += place.finetuning(f"{method}-{share}-s{seed}", model, PERCENT, seed, after=after)
    return jobs + [job for seed in SEEDS for job in place.supervised("simclr", PERCENT, seed)]


def suncet(place: Place, seed: int) -> Job:
    """Return the job that pre-trains with SimCLR and SuNCEt, with as many steps and inputs as SimCLR alone."""
    name = f"suncet-s{seed}"
    arguments = (
        *("pretrain", str(place.data), str(place.runs / name), *PRETRAIN, "--epochs", "4", "--save_every", "1"),
        *("--batch_size", "128", "--optimizer.warmup_epochs", "0.5", "--seed", str(seed)),
        *("--suncet.labels", str(place.label_file(PERCENT, seed))),
        *("--suncet.classes_per_batch", "10", "--suncet.images_per_class", "25", "--suncet.temperature", "0.1"),
    )
    return Job(name, arguments, place.model(name), ("labels",))


def model_after(place: Place, method: str, share: int, seed: int) -> Path:
    """Return the folder of the model after a share of the budget."""
    out = place.runs / f"{method}-s{seed}"
    epoch = EPOCHS_OF_A_QUARTER[method] * share // 25
    return out if share == SHARES[-1] else out / "models" / f"epoch-{epoch:04d}"


def compute_to_reach(curve: dict[int, list[float]], accuracy: float) -> float | None:
    """Return the share of the budget at which the mean curve, interpolated linearly, reaches an accuracy, or None."""
    means = [(share, statistics.mean(values)) for share, values in curve.items()]
    if means[0][1] >= accuracy:
        return float(means[0][0])
    for (x, y), (next_x, next_y) in itertools.pairwise(means):
        if next_y >= accuracy:
            return x + (accuracy - y) / (next_y - y) * (next_x - x)
    return None


def draw(curves: dict[str, dict[int, list[float]]], baseline: list[float], path: Path) -> None:
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    plain_axes(axes, f"CIFAR-10 (half of it), {PERCENT} % of the labels, fine-tuned: top-1 on test images")
    for colour, (method, curve) in zip(SERIES, curves.items(), strict=False):
        x = [share * BUDGET[method] / 100 / 1000 for share in curve]
        means = [statistics.mean(values) for values in curve.values()]
        axes.errorbar(
            x, means, [statistics.stdev(values) for values in curve.values()], color=colour, marker="o", capsize=3,
            label=METHODS[method],
        )  # fmt: skip
    axes.axhline(statistics.mean(baseline), color=MUTED, linestyle="--", linewidth=1, label="labels alone")
    axes.set_xlabel("network inputs in pre-training, thousands")
    axes.legend(frameon=False)
    path.write_bytes(to_png(figure))


def main() -> None:
    arguments = parse(__doc__)
    place, jobs = perform(study, arguments)
    curves = {
        method: {share: [place.top1(f"{method}-{share}-s{seed}") for seed in SEEDS] for share in SHARES}
        for method in METHODS
    }
    baseline = [place.top1(f"supervised-simclr-{PERCENT}-s{seed}") for seed in SEEDS]
    rows: list[list[object]] = [
        [METHODS[method], BUDGET[method] // 1000, *(mean_and_spread(values) for values in curve.values())]
        for method, curve in curves.items()
    ]
    rows.append(["labels alone", None, None, None, None, mean_and_spread(baseline)])
    share_of_budget = compute_to_reach(curves["suncet"], statistics.mean(curves["simclr"][100]))
    verdict = (
        f"SuNCEt reaches SimCLR's final accuracy at {share_of_budget:.0f} % of the budget (by linear interpolation)."
        if share_of_budget is not None
        else "SuNCEt does not reach SimCLR's final accuracy within the budget."
    )
    about = (
        f"Top-1 % on 10,000 test images after fine-tuning with {PERCENT} % of the labels (2,500 images): mean and "
        "standard deviation over three seeds with different labelled images. ResNet-18 with a quarter of the channels, "
        "25,000 training images."
    )
    columns = ["pre-training", "thousand inputs", *(f"after {share} %" for share in SHARES)]
    write(arguments.out, jobs, columns=columns, rows=rows, notes=[about, verdict], accuracies=curves)
    draw(curves, baseline, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
