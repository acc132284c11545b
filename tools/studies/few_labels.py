"""Evaluate `ssl-vision few-labels` on CIFAR-10 with 50, 500 and 5,000 labels.

    python -m tools.studies.few_labels --data cifar10 --runs runs/few-labels --out docs/results/few_labels.json

The study uses one SimCLR encoder and three draws of labelled images for each number of labels. All settings and the
recommended classifier are chosen by cross-validation on the labelled images; test images are scored at the end.
Commands with a result are not repeated, and killed pre-training and fine-tuning continue.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.results import provenance, write_result
from tools.studies.common import Job, half_of, mean_and_spread, parse, run_all

PER_CLASS = (5, 50, 500)
DRAWS = (0, 1, 2)
CLASSES = 10
METHODS = {"linear": "linear classifier", "knn": "nearest neighbours", "finetune": "fine-tuning"}


def study(data: Path, runs: Path) -> list[Job]:
    """Return all commands in the order of their dependencies."""
    encoder, labels = runs / "encoder", runs / "labels"
    pretraining = (
        *("pretrain", str(data), str(encoder), "--config", "simclr-cifar10-cpu", "--encoder.width_multiplier", "0.125"),
        *("--head.layers", "3", "--epochs", "32", "--optimizer.warmup_epochs", "4", "--threads", "1", "--seed", "0"),
    )
    splits = ("make-splits", str(data), str(labels), "--fractions", "[]", "--per_class", f"[{_counts()}]")
    jobs = [
        Job("encoder", pretraining, encoder / "model" / "model.json"),
        Job("labels", (*splits, "--draws", str(len(DRAWS))), labels / _label_file(PER_CLASS[0], 0)),
    ]
    for per_class, draw in itertools.product(PER_CLASS, DRAWS):
        out = runs / _name(per_class, draw)
        arguments = (
            *("few-labels", str(encoder), str(data), str(out), "--labels", str(labels / _label_file(per_class, draw))),
            *("--precision", "bf16-mixed", "--seed", str(draw)),
        )
        jobs.append(Job(out.name, arguments, out / "few-labels.json", ("encoder", "labels")))
    return jobs


def _counts() -> str:
    return ", ".join(map(str, PER_CLASS))


def _label_file(per_class: int, draw: int) -> str:
    return f"{per_class}-per-class-draw{draw}.json"


def _name(per_class: int, draw: int) -> str:
    return f"{per_class * CLASSES}-labels-draw{draw}"


def summarise(results: Mapping[int, list[dict[str, Any]]]) -> list[list[object]]:
    """Return the rows of the table: test accuracy of every method, of the recommended method, and of the best method.

    Args:
        results: Results of `few-labels` for every draw, by number of labels.
    """
    rows: list[list[object]] = []
    for labels, draws in results.items():
        tests = [{c["method"]: float(c["test"]) for c in draw["candidates"]} for draw in draws]
        recommended = [test[draw["recommended"]] for test, draw in zip(tests, draws, strict=True)]
        rows.append(
            [
                f"{labels:,}",
                len(draws),
                *(mean_and_spread([test[method] for test in tests]) for method in METHODS),
                mean_and_spread(recommended),
                mean_and_spread([max(test.values()) for test in tests]),
                ", ".join(METHODS[draw["recommended"]] for draw in draws),
            ]
        )
    return rows


def notes(results: Mapping[int, list[dict[str, Any]]]) -> list[str]:
    """Describe how fine-tuning compares with the linear classifier, and the recommended with the best method."""
    sentences = [
        "Top-1 % on 10,000 test images: mean and standard deviation over draws of the labelled images. One "
        "encoder: ResNet-18 with an eighth of the channels, 32 epochs of SimCLR on 25,000 images (half of CIFAR-10's "
        "training images) at 32 px. Every setting and the recommendation come from cross-validation on the labelled "
        "images."
    ]
    for labels, draws in results.items():
        tests = [{c["method"]: float(c["test"]) for c in draw["candidates"]} for draw in draws]
        gains = [test["finetune"] - test["linear"] for test in tests]
        losses = [max(test.values()) - test[draw["recommended"]] for test, draw in zip(tests, draws, strict=True)]
        settings = [next(c["setting"] for c in draw["candidates"] if c["method"] == "finetune") for draw in draws]
        sentences.append(
            f"{labels:,} labels: the difference of fine-tuning to the linear classifier is "
            f"{', '.join(f'{g:+.1f}' for g in gains)} points by draw; the recommended method is "
            f"{statistics.mean(losses):.1f} points below the best on the test images; the settings of fine-tuning are "
            f"{'; '.join(settings)}."
        )
    return sentences


def main() -> None:
    arguments = parse(__doc__)
    jobs = study(half_of(arguments.data, arguments.runs / "data"), arguments.runs)
    missing = run_all(jobs, logs=arguments.runs / "logs", workers=arguments.workers)
    results: dict[int, list[dict[str, Any]]] = {}
    for per_class in PER_CLASS:
        files = [arguments.runs / _name(per_class, draw) / "few-labels.json" for draw in DRAWS]
        draws = [json.loads(file.read_text()) for file in files if file.is_file()]
        if draws:
            results[per_class * CLASSES] = draws
    if missing and not results:
        raise SystemExit(f"no results were written, because these jobs failed: {', '.join(missing)}")
    columns = ["labels", "draws", *METHODS.values(), "recommended", "best on the test images", "recommended by draw"]
    write_result(
        arguments.out,
        {
            "name": arguments.out.stem,
            **provenance(),
            "seeds": list(DRAWS),
            "config": {"commands": [job.line for job in jobs]},
            "table": {"columns": columns, "rows": summarise(results)},
            "notes": notes(results),
            "draws": results,
        },
    )
    if missing:
        raise SystemExit(f"results were written without those of the jobs that failed: {', '.join(missing)}")


if __name__ == "__main__":
    main()
