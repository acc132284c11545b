"""Scores of pseudo-labels with truth that training did not see: for studies, after the run, on request only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ssl_medseg.selftraining.pseudo_labels import dice_of, read_pseudo_labels
from ssl_medseg.selftraining.rounds import read_rounds, write_round


def pseudo_file(folder: Path, number: int) -> Path:
    """Where a run keeps the pseudo-labels of a round."""
    return folder / "pseudo" / f"round-{number:02d}.safetensors"


def score_withheld_labels(folder: Path, structures: Sequence[str], truth: Mapping[str, Tensor]) -> list[float]:
    """Add the Dice of the pseudo-labels with the truth to the rounds of a finished run.

    Dice over all pixels of the slices of a case, per structure; a structure that is on one side only scores 0, one that
    is on neither is left out.

    Args:
        folder: of the run.
        structures: names, without the background.
        truth: labels uint8 [S, H, W] by case, of those that have one.

    Returns:
        Mean Dice of each round.
    """
    means = []
    for found in read_rounds(folder):
        made = read_pseudo_labels(pseudo_file(folder, found.round))
        per_case = {
            case.name: dice_of(case.predicted, truth[case.name], len(structures) + 1)[1:]
            for case in made
            if case.name in truth
        }
        if not per_case:
            return []
        table = torch.stack(list(per_case.values()))
        by_structure = table.nanmean(0)
        found.withheld = {
            "cases": len(per_case),
            "mean": float(table.nanmean(1).nanmean()),
            "structures": dict(zip(structures, by_structure.tolist(), strict=True)),
            "by_case": {name: float(scores.nanmean()) for name, scores in per_case.items()},
        }
        write_round(folder, found)
        means.append(found.withheld["mean"])
    return means
