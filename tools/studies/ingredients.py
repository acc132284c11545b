"""Change the strong recipe one part at a time, on ACDC with two labelled patients, and measure the difference.

    python -m tools.studies.ingredients --data data/acdc --runs runs/acdc --out docs/results/acdc_ingredients.json

All trainings on labels have N steps. All trainings with unlabelled slices begin with the same model of the recipe and
have N further steps. Commands with a result are not repeated, and runs that the results file already contains are kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_medseg.training.recipe import EFFORTS
from tools.results import provenance, write_result
from tools.studies.common import Starter, mean_and_spread, run_all, signed
from tools.studies.strong import LIBRARIES, MATERIALS, Method, Results, Study, collect

COUNT, DRAWS, EFFORT = 2, 3, "minutes"
RECIPE, UNLABELLED = "first", "consistency"
"""The unchanged recipe on labels, and with unlabelled slices."""


def _labels(name: str, *training: str) -> Method:
    return Method(name, None, training)


def _consistency(name: str, *arguments: str) -> Method:
    return Method(name, ("--method", "consistency", *arguments))


LABELS: dict[str, Method] = {
    RECIPE: _labels("recipe strong, labels alone"),
    "loss-dice": _labels("loss: Dice of the paper", "--loss", "dice"),
    "loss-ce": _labels("loss: cross-entropy", "--loss", "cross-entropy"),
    "network-paper": _labels("network: the paper's, batch norm", "--network.name", "unet"),
    "width-8": _labels("width 8", "--network.width", "8"),
    "width-24": _labels("width 24", "--network.width", "24"),
    "size-96": Method("slices of 96 x 96 pixels", None, ("--steps", str(EFFORTS[EFFORT].steps)), "hour"),
    "augment-paper": _labels("augmentation of the paper", "--augment.kind", "paper"),
    "augment-none": _labels("no augmentation", "--no-augment.affine", "--elastic", "0", "--no-augment.intensity"),
    "adam": _labels("no weight decay", "--weight-decay", "0"),
    "no-average": _labels("no moving average of the weights", "--ema", "0"),
    "no-balance": _labels("slices drawn at random", "--rare-share", "0"),
}
"""Trainings on the labels alone."""
SELFTRAINING: dict[str, Method] = {
    UNLABELLED: _consistency("consistency"),
    "no-cutmix": _consistency("no CutMix", "--cutmix", "0"),
    "confidence-0": _consistency("all pixels", "--confidence", "0"),
    "confidence-95": _consistency("confidence 0.95", "--confidence", "0.95"),
    "ema-999": _consistency("moving average of 0.999", "--ema", "0.999"),
    "no-ramp": _consistency("full weight from the first step", "--consistency.ramp", "0"),
    "feature-dropout": _consistency("feature dropout", "--feature-dropout", "0.5"),
    "copy-paste": Method("copy-paste in place of consistency", ("--method", "copy-paste")),
    "consistency-contrast": _consistency("local contrastive loss, weight 0.1", "--contrast.weight", "0.1"),
}
"""Trainings with unlabelled slices."""
COLUMNS = ("part", "draws", "Dice", "worst draw", "difference", "HD95")


def rows(results: Results) -> list[list[object]]:
    """Return a row for every change, with the difference to the unchanged recipe, paired by draw."""
    lines: list[list[object]] = []
    runs_by_name = results.get(str(COUNT), {})
    for base, methods in ((RECIPE, LABELS), (UNLABELLED, SELFTRAINING)):
        for name, method in methods.items():
            runs, recipe = runs_by_name.get(name, {}), runs_by_name.get(base, {})
            if not runs:
                continue
            dice = {draw: scores["chosen"] for draw, scores in runs.items()}
            far = [scores["hd95"] for scores in runs.values() if "hd95" in scores]
            gains = [dice[draw] - recipe[draw]["chosen"] for draw in sorted(dice.keys() & recipe.keys())]
            lines.append(
                [
                    method.name, len(runs), mean_and_spread(list(dice.values()), decimals=3),
                    f"{min(dice.values()):.3f}", signed(gains, decimals=3) if name != base and gains else None,
                    mean_and_spread(far, decimals=1) if len(far) == len(runs) else None,
                ]
            )  # fmt: skip
    return lines


def notes() -> list[str]:
    """Return the conditions of the runs."""
    size, steps = EFFORTS[EFFORT].size, EFFORTS[EFFORT].steps
    return [
        f"Mean foreground Dice of the 20 volumes of 10 test patients on their original grids, {COUNT} labelled "
        "patients: mean and standard deviation over the draws; differences from the unchanged recipe, paired by draw: "
        f"mean and standard error. Effort {EFFORT}: slices of {size} x {size} pixels, {steps:,} steps of 12 labelled "
        "slices, and as many further steps with 12 unlabelled ones. The last step is kept; mirroring and largest "
        "components are chosen on two validation patients. HD95 is in voxels.",
        "Each row changes one part of the recipe and keeps the number of steps, not the compute. No setting was chosen "
        "from this table.",
    ]


def write(study: Study, lines: Sequence[str], out: Path, commit: str | None) -> None:
    """Write the results file, and add to an earlier one."""
    earlier: Mapping[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    results = collect(study, earlier)
    commands = dict.fromkeys([*earlier.get("config", {}).get("commands", []), *lines])
    write_result(
        out,
        {
            "name": out.stem,
            **provenance(),
            **({"commit": commit} if commit else {}),
            "seeds": list(range(1, DRAWS + 1)),
            "config": {"commands": list(commands)},
            "table": {"columns": list(COLUMNS), "rows": rows(results)},
            "notes": earlier.get("notes") or notes(),
            "scores": results,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of ACDC with split.csv")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--workers", type=int, default=1, help="number of commands to run at a time")
    parser.add_argument("--collect", action="store_true", help="write the existing results without running commands")
    parser.add_argument("--commit", help="commit of the code that ran the commands, if it differs from this one")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    catalogue = LABELS | SELFTRAINING
    study = Study(
        MATERIALS["acdc"], arguments.data, arguments.runs, DRAWS, EFFORT, "bf16-mixed", counts=(COUNT,),
        methods=tuple(catalogue), by_draw=True, catalogue=catalogue,
    )  # fmt: skip
    # The last step is the one that is kept.
    jobs = [job for job in study.jobs() if not job.name.endswith("-last")]
    if not arguments.collect:
        missing = run_all(
            jobs, logs=arguments.runs / "logs", workers=arguments.workers, call=Starter(LIBRARIES, None)
        )  # fmt: skip
        if missing:
            raise SystemExit(
                f"no results were written, because these jobs failed: {', '.join(missing)}; see their logs"
            )
    write(study, [job.line for job in jobs if job.result.exists()], arguments.out, arguments.commit)


if __name__ == "__main__":
    main()
