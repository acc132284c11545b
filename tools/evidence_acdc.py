"""Semi-supervised segmentation of ACDC with 1, 2 and 8 labelled patients. Into results/acdc.json.

    python -m tools.evidence_acdc --data data/acdc --runs runs/acdc --out results/acdc.json

Five draws of labelled patients; for each the supervised baseline, and from the same first segmenter plain self-training
(Dice on the pseudo-labels), the paper's joint training (segmentation loss on labels, local contrastive loss on
pseudo-labels), both together, and the lines beside them. Methods of a draw share everything but the loss, so their
differences are paired. Scores are of the ten patients that `split.csv` keeps for validation, here the test part, which
choose nothing; two other patients choose the step. Commands that have run are not run again; a cell whose draws are not
all there says how many it has.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from tools.evidence_acdc_runs import COUNTS, FIRST, METHODS, MORE, ROUNDS, STEPS, Scores, Study
from tools.evidence_runs import mean_and_spread, run_all
from tools.label_ceiling import ceiling
from tools.results import provenance, write_result


def paired(scores: Scores, method: str, baseline: str) -> list[float]:
    """Differences in the draws that both have."""
    mine, theirs = scores.get(method, {}), scores.get(baseline, {})
    return [mine[draw] - theirs[draw] for draw in sorted(mine.keys() & theirs.keys())]


def rows(study: Study) -> list[list[object]]:
    """The table: a line per number of labelled patients and method."""
    lines: list[list[object]] = []
    for count in sorted(COUNTS):
        scores = study.scores(count)
        for method, found in scores.items():
            values = list(found.values())
            differences = paired(scores, method, "pseudo") if method != "pseudo" else []
            pseudo = [entry[-1] for entry in study.pseudo_dice(method, count)]
            lines.append(
                [
                    count, METHODS[method].name, len(values), METHODS[method].slices // 1000,
                    mean_and_spread(values, decimals=3), _signed(differences) if differences else None,
                    mean_and_spread(pseudo, decimals=3) if pseudo else None,
                ]
            )  # fmt: skip
    upper = list(study.upper_scores().values())
    if upper:
        seen = 20 * (FIRST + MORE) // 1000
        lines.append(["all", "labels alone", len(upper), seen, mean_and_spread(upper, decimals=3), None, None])
    return lines


COMPARED = (
    ("pseudo", "supervised"), ("both", "pseudo"), ("both", "pseudo-long"), ("pseudo", "supervised-long"),
    ("both", "supervised-long"), ("teacher", "pseudo"), ("contrast", "first"), ("intra", "contrast"),
    ("official", "contrast"), ("parent", "supervised"),
)  # fmt: skip
"""Method and what it is held against, for the sentences."""


def claims(scores: Scores, count: int) -> str:
    """Paired differences, with their standard errors over draws."""
    said = []
    for method, baseline in COMPARED:
        values = paired(scores, method, baseline)
        if len(values) > 1:
            error = statistics.stdev(values) / len(values) ** 0.5
            better = sum(value > 0 for value in values)
            said.append(
                f"{METHODS[method].name} against {METHODS[baseline].name} {statistics.mean(values):+.3f} ± {error:.3f} "
                f"({better} of {len(values)} draws better)"
            )
    return f"Mean differences and their standard errors, {count} labelled: {'; '.join(said)}." if said else ""


def _signed(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="ACDC as a Decathlon folder with split.csv")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--workers", type=int, default=1, help="commands side by side, a thread each")
    parser.add_argument("--collect", action="store_true", help="run nothing, write what is there")
    parser.add_argument("--commit", help="of the code that ran, where it is another one than this")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    study = Study(arguments.data, arguments.runs, arguments.draws, tuple(arguments.methods))
    jobs = study.jobs()
    if not arguments.collect:
        missing = run_all(jobs, logs=arguments.runs / "logs", workers=arguments.workers)
        if missing:
            raise SystemExit(f"not all results are there, for {', '.join(missing)} did not end well")
    top = ceiling(study.upper(1)[0].result.parent, study.data, study.split(1, 1))
    notes = [
        "Mean foreground Dice of the 20 volumes of 10 test patients on their own grids: mean and standard deviation "
        "over the draws of labelled patients that have run (of all labels: over seeds), one run per cell. Slices of "
        f"64 x 64 pixels, U-Net of width 8, the package's defaults; {FIRST} steps on the labels, then {ROUNDS} rounds "
        f"of {STEPS} (labels alone: {FIRST + MORE} steps in one). Two other patients choose the step.",
        "Steps are matched, compute is not, but for the lines that say so: the column counts the slices that went "
        "through the network, those of the first segmenter included.",
        *filter(None, (claims(study.scores(count), count) for count in sorted(COUNTS))),
        f"The truth itself, drawn on these pixels and brought back, has Dice {top:.3f}.",
    ]
    write_result(
        arguments.out,
        {
            "name": arguments.out.stem,
            **provenance(),
            **({"commit": arguments.commit} if arguments.commit else {}),
            "seeds": list(range(1, study.draws + 1)),
            "config": {"commands": [job.line for job in jobs if job.result.exists()]},
            "table": {
                "columns": [
                    "labelled patients", "method", "draws", "thousand slices seen", "Dice",
                    "against plain self-training", "last pseudo-labels",
                ],
                "rows": rows(study),
            },
            "notes": notes,
            "test_dice": {str(count): study.scores(count) for count in COUNTS} | {"all": study.upper_scores()},
            "pseudo_dice": {
                str(count): {method: study.pseudo_dice(method, count) for method in study.methods} for count in COUNTS
            },
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
