"""What joint training trains, and which of its weights are scored and kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contrastive_core.training import Run
from ssl_medseg.models import JointNetwork, build_network, settle_statistics
from ssl_medseg.models.checkpoint import Segmenter
from ssl_medseg.models.network import Norm
from ssl_medseg.selftraining.options import Reuse
from ssl_medseg.training.optim import BestWeights, Schedule, adam, moving_average, scheduler
from ssl_medseg.training.validation import Validation


class Student:
    """The network of a run of self-training with its optimiser and, if asked for, the average of its weights.

    Args:
        run: the run, which tracks all of it.
        found: the segmenter it begins with.
        reuse: Part of the segmenter to begin with.
        embedding: width of the contrastive head; 0: none.
        norm: see :class:`JointNetwork`.
        lr: learning rate, the largest of the schedule.
        weight_decay: of AdamW; 0 is Adam.
        schedule: of the learning rate.
        cycle: steps of one cycle of it.
        decay: of the average; 0: none.
        steps: of the run.

    Attributes:
        model: the wrapped network, for training.
        optimizer: Adam.
        kept: the network that is scored and kept: the average, or the trained one.
    """

    def __init__(
        self,
        run: Run,
        found: Segmenter,
        *,
        reuse: Reuse,
        embedding: int,
        norm: Norm,
        lr: float,
        weight_decay: float,
        schedule: Schedule,
        cycle: int,
        decay: float,
        steps: int,
    ) -> None:
        torch.manual_seed(run.seed("weights"))
        self._segmenter = build_network(found.options, len(found.labels), channels=len(found.preprocessing.channels))
        if reuse == "whole":
            self._segmenter.load_state_dict(found.network.state_dict())
        elif reuse == "trunk":
            self._segmenter.trunk.load_state_dict(found.network.trunk.state_dict())
        joint = JointNetwork(self._segmenter, embedding=embedding, norm=norm)
        settle_statistics(joint, steps=steps)
        self.model, self.optimizer = run.setup(joint, adam(joint.parameters(), lr=lr, weight_decay=weight_decay))
        self._rates = scheduler(self.optimizer, schedule, cycle=cycle)
        run.track(model=joint, optimizer=self.optimizer, rates=self._rates)
        self._average = moving_average(self._segmenter, decay) if decay else None
        self.kept: nn.Module = self._segmenter
        if self._average is not None:
            self.kept = self._average.module
            run.track(average=self._average)

    def update(self, run: Run, loss: Tensor) -> None:
        """One step of the optimiser, and of the average."""
        self.optimizer.zero_grad()
        run.fabric.backward(loss)
        self.optimizer.step()
        self._rates.step()
        if self._average is not None:
            self._average.update_parameters(self._segmenter)


_LOSS = 0.05
"""Validation Dice that the last weights may lose and still be kept: one or two patients cannot tell smaller ones."""


class Scoring:
    """Scores on the validation cases, the best weights of the run and of its current round, and those it began with.

    Args:
        run: the run, which tracks them.
        validation: None: nothing is scored.
        every: steps between two scores.
    """

    def __init__(self, run: Run, validation: Validation | None, *, every: int) -> None:
        self._run, self._validation, self._every = run, validation, every
        self.begun, self.best, self.best_of_round = BestWeights(), BestWeights(), BestWeights()
        run.track(begun=self.begun, best=self.best, best_of_round=self.best_of_round)

    def begin(self, network: nn.Module) -> None:
        """Score the segmenter the run begins with, which is kept if no step is as good."""
        if self._validation is not None:
            self.begun.offer(self._validation.scores(network).mean, step=0, network=network)

    def after(self, step: int, network: nn.Module, *, ends_round: bool) -> None:
        """Score after a step, if it is time to."""
        if self._validation is None or not ((step + 1) % self._every == 0 or ends_round):
            return
        scores = self._validation.scores(network)
        self._run.record(**scores.record())
        for keeper in (self.best, self.best_of_round):
            keeper.offer(scores.mean, step=step + 1, network=network)

    def choose(self, network: nn.Module, *, keep: str, steps: int) -> str:
        """Put the weights to keep into the network; which they are, in words."""
        begun, best = self.begun, self.best
        worse = begun.score is not None and best.score is not None and best.score < begun.score
        if worse:
            self._run.say(
                f"warning: the segmenter this began with has a validation Dice of {begun.score:.3f}, the best since "
                f"then {best.score:.3f}: the unlabelled volumes did not help, or the run was too short"
            )
        if self._validation is None or keep == "last":
            if self._validation is not None and begun.score is not None:
                last = self._validation.scores(network).mean
                if last < begun.score - _LOSS:
                    begun.give(network)
                    return f"those it began with, validation Dice {begun.score:.3f}; the last had {last:.3f}"
            return f"the last, after step {steps}"
        if worse:
            begun.give(network)
            return f"those it began with, validation Dice {begun.score:.3f}; the best since then had {best.score:.3f}"
        self.best.give(network)
        return f"the best of validation, Dice {self.best.score:.3f} after step {self.best.step}"

    def words(self, step: int) -> str:
        """Which weights are the best of the round that ends before `step`."""
        best = self.best_of_round
        return (
            f"weights after step {step}" if best.score is None else f"best weights of the round, after step {best.step}"
        )
