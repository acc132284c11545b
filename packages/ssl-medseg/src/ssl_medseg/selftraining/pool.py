"""The unlabelled slices with the pseudo-labels of the round: made, written down, found again after a restart."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training import Run
from ssl_medseg.selftraining.options import PseudoLabelOptions
from ssl_medseg.selftraining.pseudo_labels import (
    UNUSED,
    PseudoCase,
    make_pseudo_labels,
    read_pseudo_labels,
    write_pseudo_labels,
)
from ssl_medseg.selftraining.rounds import check_round, describe, pseudo_file, read_rounds, write_round
from ssl_medseg.training.data import TrainingData
from ssl_medseg.training.optim import BestWeights
from ssl_medseg.training.slices import SliceSet, stack_slices


class Pool:
    """Unlabelled cases and their pseudo-labels; track it, so that a resumed run goes on with those of its round.

    Args:
        run: the run, in whose folder they are kept.
        data: its unlabelled cases are the pool; areas are compared with those of its labelled ones.
        options: how pseudo-labels are made.

    Attributes:
        round: the current one, from 1; 0 before the first.
    """

    def __init__(self, run: Run, data: TrainingData, options: PseudoLabelOptions) -> None:
        self._run, self._cases, self._options = run, data.unlabelled, options
        self._structures = data.labels.structures
        self._labelled = [case.label for case in data.labelled if case.label is not None]
        self._slices = stack_slices(self._cases)
        self._made: list[PseudoCase] | None = None
        self.round = 0

    @property
    def slices(self) -> SliceSet:
        """The slices with the labels of this round: uint8, the number of classes where a pixel is not used.

        Before the first round they have no labels.
        """
        if self._made is None:
            return self._slices
        label = torch.cat([case.label for case in self._made])
        unused = torch.tensor(len(self._structures) + 1, dtype=torch.uint8)
        return self._slices.with_labels(torch.where(label == UNUSED, unused, label))

    @property
    def used(self) -> Tensor:
        """Slices with at least one pixel that is used: int64."""
        return torch.nonzero((self.slices.truth <= len(self._structures)).flatten(1).any(1)).flatten()

    def refresh(
        self, network: nn.Module, best: BestWeights, *, step: int, made_by: str, score: float | None
    ) -> dict[str, float]:
        """Begin a round: predict with the best weights there are, or with the network as it is, and write it down.

        Returns:
            The round in numbers, for the metrics.

        Raises:
            UserError: no pseudo-label passes, or they have collapsed.
        """
        predictor = copy.deepcopy(network)
        best.give(predictor)
        made = make_pseudo_labels(predictor, self._cases, self._options)
        self.round += 1
        found = describe(
            self.round, made, self._made, step=step, made_by=made_by, structures=self._structures,
            labelled=self._labelled, options=self._options,
        )  # fmt: skip
        found.validation["before"] = score
        self._made = made
        if self._run.is_main:
            write_pseudo_labels(pseudo_file(self._run.out, self.round), made)
            write_round(self._run.out, found)
        for warning in found.warnings:
            self._run.say(f"warning: round {self.round}: {warning}")
        last = self._run.out / f"models/round-{self.round - 1:02d}"
        check_round(found, self._options, model=last if self.round > 1 else None)
        self._run.say(str(found))
        return found.metrics

    def collapse(self, network: nn.Module) -> list[str]:
        """Structures that are missing or over-represented in its predictions of the unlabelled cases, in words."""
        if self._options.guard == "off":
            return []
        plain = replace(PseudoLabelOptions(), least_area=self._options.least_area, most_area=self._options.most_area)
        found = describe(
            1, make_pseudo_labels(network, self._cases, plain), None, step=0, made_by="", structures=self._structures,
            labelled=self._labelled, options=plain,
        )  # fmt: skip
        return found.warnings

    def finish(self, best: BestWeights) -> None:
        """End a round: write down the best score in it."""
        if self._run.is_main:
            found = read_rounds(self._run.out)[self.round - 1]
            found.validation["after"] = best.score
            write_round(self._run.out, found)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: which round it is. The pseudo-labels lie in the run's folder."""
        return {"round": self.round}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint.

        Raises:
            UserError: the pseudo-labels of the round are not there, or not of these cases.
        """
        self.round = int(state["round"])
        if self.round == 0:
            return
        path = pseudo_file(self._run.out, self.round)
        by_name = {case.name: case for case in read_pseudo_labels(path)}
        missing = [case.name for case in self._cases if case.name not in by_name]
        if missing:
            raise UserError(f"{path}: holds no pseudo-label of {', '.join(missing[:5])}; start the run again")
        self._made = [by_name[case.name] for case in self._cases]
