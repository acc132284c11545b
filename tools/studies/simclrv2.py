"""Test the claims of SimCLRv2 on CIFAR-10 with 1 % and 10 % of the labels.

    python -m tools.studies.simclrv2 --data cifar10 --runs runs/few-labels --out docs/results/simclrv2.json

A wide and a narrow ResNet-18 (a quarter and an eighth of the usual channels) are pre-trained in the same manner, with a
head of three layers, and fine-tuned from the encoder and from the first layer of the head. The wide network that was
fine-tuned from the first layer then teaches a student of the same size and the narrow network, on all training images
without labels. Both networks are also trained on the labels alone. Fine-tuning was tuned on a validation part of the
training images with the SimCLR encoder of seed 0. Distillation was not tuned, with two exceptions: the factor of
self-distillation was added after a first run whose test accuracy was at chance level, and 16 epochs were tried after 4.
Commands with a result are not repeated; pre-training is shared with `tools/studies/suncet.py`.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

from contrastive_core.app.report.figures import SERIES, new_figure, plain_axes, to_png
from tools.studies.common import ENCODERS, PER_CLASS, SEEDS, Job, Place, mean_and_spread, parse, perform, write

WIDTHS = {"simclr": "wide", "small": "narrow"}
SHORT, LONG = 4, 16
"""Epochs of distillation."""
NOT_LONG = ("simclr", 1)
"""Encoder and percentage of labels for which only the short distillation was run."""
DISTIL = ("--batch_size", "256", "--precision", "bf16-mixed", "--threads", "1")
ROWS = {
    "supervised-{encoder}-{percent}": "labels alone",
    "{encoder}-{percent}-layer0": "fine-tuned from the encoder",
    "{encoder}-{percent}-layer1": "fine-tuned from the head's first layer",
    "{encoder}-{percent}-distilled": f"distilled from the wide network, {SHORT} epochs",
    f"{{encoder}}-{{percent}}-distilled{LONG}": f"distilled from the wide network, {LONG} epochs",
}


def study(place: Place) -> list[Job]:
    """Return all commands in the order of their dependencies."""
    jobs = [place.labels()]
    jobs += [place.pretraining(encoder, seed) for seed, encoder in itertools.product(SEEDS, ENCODERS)]
    for seed, percent, encoder, layer in itertools.product(SEEDS, PER_CLASS, ENCODERS, (0, 1)):
        name, start = f"{encoder}-{percent}-layer{layer}-s{seed}", f"{encoder}-s{seed}"
        jobs += place.finetuning(name, place.runs / start, percent, seed, after=start, layer=layer)
    for seed, percent, encoder in itertools.product(SEEDS, PER_CLASS, ENCODERS):
        jobs += distilled(place, encoder, percent, seed, epochs=SHORT)
        if (encoder, percent) != NOT_LONG:
            jobs += distilled(place, encoder, percent, seed, epochs=LONG)
    for seed, percent, encoder in itertools.product(SEEDS, PER_CLASS, ENCODERS):
        jobs += place.supervised(encoder, percent, seed)
    return jobs


def distilled(place: Place, encoder: str, percent: int, seed: int, *, epochs: int) -> list[Job]:
    """Return the jobs that distil the wide network, fine-tuned from the head's first layer, into a student."""
    name, teacher, start = (
        f"{encoder}-{percent}-distilled{'' if epochs == SHORT else epochs}-s{seed}",
        f"simclr-{percent}-layer1-s{seed}",
        f"{encoder}-s{seed}",
    )
    # Temperatures of the paper for a student of the same size and for a smaller one. At 0.1 the linear layer, which
    # LARS does not adapt, diverges without the factor of the released notebook.
    temperature = {"simclr": ("--temperature", "0.1", "--scale_by_temperature"), "small": ("--temperature", "1.0")}[
        encoder
    ]
    arguments = (
        *("distill", str(place.runs / teacher), str(place.data), str(place.runs / name), *DISTIL),
        *("--epochs", str(epochs)),
        *(*temperature, "--init", str(place.runs / start), "--seed", str(seed)),
    )
    return [Job(name, arguments, place.model(name), (teacher, start)), place.test(name)]


def main() -> None:
    arguments = parse(__doc__)
    place, jobs = perform(study, arguments)
    accuracies = {
        key: [place.top1(f"{key}-s{seed}") for seed in SEEDS]
        for encoder, percent, row in itertools.product(ENCODERS, PER_CLASS, ROWS)
        for key in [row.format(encoder=encoder, percent=percent)]
        if not (row.endswith(str(LONG)) and (encoder, percent) == NOT_LONG)
    }
    rows: list[list[object]] = []
    for encoder, (row, title) in itertools.product(ENCODERS, ROWS.items()):
        runs = [accuracies.get(row.format(encoder=encoder, percent=percent)) for percent in PER_CLASS]
        rows.append([WIDTHS[encoder], title, *(mean_and_spread(values) if values else None for values in runs)])
    about = (
        "Top-1 % on 10,000 test images: mean and standard deviation over three seeds with different labelled images. "
        "25,000 training images, 8 epochs of pre-training. The wide network has a quarter of the channels of "
        "ResNet-18, the narrow one an eighth."
    )
    columns = ["network", "training", *(f"{percent} % of labels" for percent in PER_CLASS)]
    notes = [about, *claims(accuracies)]
    write(arguments.out, jobs, columns=columns, rows=rows, notes=notes, accuracies=accuracies)
    draw(accuracies, arguments.out.with_suffix(".png"))


def claims(accuracies: dict[str, list[float]]) -> list[str]:
    """Describe each claim by its differences in points, paired by seed: mean and standard deviation."""
    questions = {
        "wide minus narrow, both fine-tuned from the encoder": ("simclr-{}-layer0", "small-{}-layer0"),
        "wide minus narrow, both trained on labels alone": ("supervised-simclr-{}", "supervised-small-{}"),
        "fine-tuned from the head's first layer minus from the encoder, wide": ("simclr-{}-layer1", "simclr-{}-layer0"),
        "fine-tuned from the head's first layer minus from the encoder, narrow": ("small-{}-layer1", "small-{}-layer0"),
        f"distilled from the wide network for {SHORT} epochs minus fine-tuned, narrow": (
            "small-{}-distilled",
            "small-{}-layer1",
        ),
        f"distilled from the wide network for {LONG} epochs minus fine-tuned, narrow": (
            f"small-{{}}-distilled{LONG}",
            "small-{}-layer1",
        ),
        f"distilled from itself for {SHORT} epochs minus fine-tuned, wide": ("simclr-{}-distilled", "simclr-{}-layer1"),
        f"distilled from itself for {LONG} epochs minus fine-tuned, wide": (
            f"simclr-{{}}-distilled{LONG}",
            "simclr-{}-layer1",
        ),
    }
    sentences = []
    for question, (better, worse) in questions.items():
        gains = {
            percent: mean_and_spread([a - b for a, b in zip(accuracies[first], accuracies[second], strict=True)])
            for percent in PER_CLASS
            for first, second in [(better.format(percent), worse.format(percent))]
            if first in accuracies
        }
        differences = ", ".join(f"{gain} at {percent} %" for percent, gain in gains.items())
        sentences.append(f"Difference in points, {question}: {differences}.")
    return sentences


def draw(accuracies: dict[str, list[float]], path: Path) -> None:
    figure = new_figure(9.6, 3.6)
    for axes, percent in zip(figure.subplots(1, len(PER_CLASS)), PER_CLASS, strict=True):
        plain_axes(axes, f"{percent} % of the labels: top-1 on test images")
        for number, (encoder, colour) in enumerate(zip(ENCODERS, SERIES, strict=False)):
            runs = {
                place: accuracies.get(row.format(encoder=encoder, percent=percent)) for place, row in enumerate(ROWS)
            }
            values = {place: top1 for place, top1 in runs.items() if top1}
            axes.barh(
                [place + 0.38 * number for place in values],
                [statistics.mean(top1) for top1 in values.values()],
                xerr=[statistics.stdev(top1) for top1 in values.values()],
                height=0.34, color=colour, label=WIDTHS[encoder], error_kw={"linewidth": 1},
            )  # fmt: skip
        axes.set_yticks([place + 0.19 for place in range(len(ROWS))], list(ROWS.values()) if percent == 1 else [])
        axes.invert_yaxis()
        axes.grid(visible=False)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    path.write_bytes(to_png(figure))


if __name__ == "__main__":
    main()
