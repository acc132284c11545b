"""Provide the network of self-training, its optimiser, and the selection of the weights to keep."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contrastive_core.training import Run
from ssl_medseg.models import JointNetwork, build_network, settle_statistics
from ssl_medseg.models.model_folder import Segmenter
from ssl_medseg.models.network import Norm
from ssl_medseg.selftraining.options import Reuse
from ssl_medseg.training.optim import BestWeights, Schedule, adam, moving_average, scheduler
from ssl_medseg.training.validation import Validation


class Student:
    """The network of a self-training run, with its optimiser and an optional moving average of its weights.

    Args:
        run: Run, which tracks all of these.
        segmenter: Segmenter that provides the initial weights.
        reuse: Part of the segmenter to reuse.
        embedding: Dimension of the embeddings of the contrastive head; 0 for no head.
        norm: See :class:`JointNetwork`.
        lr: Peak learning rate.
        weight_decay: Weight decay of AdamW; 0 selects Adam.
        schedule: Learning-rate schedule.
        cycle: Steps per cycle of the schedule.
        decay: Decay of the moving average; 0 for no average.
        steps: Number of training steps.

    Attributes:
        model: Network wrapped for training.
        optimizer: Adam or AdamW.
        network: Network that is scored and kept: the average if there is one, otherwise the trained network.
    """

    def __init__(
        self,
        run: Run,
        segmenter: Segmenter,
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
        self._segmenter = build_network(
            segmenter.options, len(segmenter.labels), channels=len(segmenter.preprocessing.channels)
        )
        if reuse == "whole":
            self._segmenter.load_state_dict(segmenter.network.state_dict())
        elif reuse == "trunk":
            self._segmenter.trunk.load_state_dict(segmenter.network.trunk.state_dict())
        joint = JointNetwork(self._segmenter, embedding=embedding, norm=norm)
        settle_statistics(joint, steps=steps)
        self.model, self.optimizer = run.setup(joint, adam(joint.parameters(), lr=lr, weight_decay=weight_decay))
        self._rates = scheduler(self.optimizer, schedule, cycle=cycle)
        run.track(model=joint, optimizer=self.optimizer, rates=self._rates)
        self._average = moving_average(self._segmenter, decay) if decay else None
        self.network: nn.Module = self._segmenter
        if self._average is not None:
            self.network = self._average.module
            run.track(average=self._average)

    def update(self, run: Run, loss: Tensor) -> None:
        """Take one optimiser step and update the average."""
        self.optimizer.zero_grad()
        run.fabric.backward(loss)
        self.optimizer.step()
        self._rates.step()
        if self._average is not None:
            self._average.update_parameters(self._segmenter)


_LOSS = 0.05
"""Largest drop of validation Dice with which the last weights are kept; with one or two cases, less is noise."""


class Scoring:
    """Validation during self-training; keeps the initial weights and the best ones of the run and of each round.

    Args:
        run: Run, which tracks the weights.
        validation: Validation cases; with None, nothing is scored.
        every: Steps between two validations.
    """

    def __init__(self, run: Run, validation: Validation | None, *, every: int) -> None:
        self._run, self._validation, self._every = run, validation, every
        self.begun, self.best, self.best_of_round = BestWeights(), BestWeights(), BestWeights()
        run.track(begun=self.begun, best=self.best, best_of_round=self.best_of_round)

    def begin(self, network: nn.Module) -> None:
        """Score the initial segmenter, which is kept if no training step improves on it."""
        if self._validation is not None:
            score = self._validation.scores(network).score
            if score is not None:
                self.begun.offer(score, step=0, network=network)

    def after(self, step: int, network: nn.Module, *, ends_round: bool) -> None:
        """Score after a step, if a validation is due."""
        if self._validation is None or not ((step + 1) % self._every == 0 or ends_round):
            return
        scores = self._validation.scores(network, step=step + 1)
        self._run.record(**scores.record())
        if scores.score is not None:
            for keeper in (self.best, self.best_of_round):
                keeper.offer(scores.score, step=step + 1, network=network)

    def choose(self, network: nn.Module, *, keep: str, steps: int) -> str:
        """Load the weights to keep into the network and return a description of them."""
        begun, best = self.begun, self.best
        is_worse = begun.score is not None and best.score is not None and best.score < begun.score
        if is_worse:
            self._run.say(
                f"warning: the initial segmenter has a validation Dice of {begun.score:.3f}, the best training step "
                f"{best.score:.3f}: the unlabelled volumes did not help, or the run was too short"
            )
        if best.score is None or keep == "last":
            if self._validation is not None and begun.score is not None:
                last = self._validation.scores(network).score
                if last is not None and last < begun.score - _LOSS:
                    begun.give(network)
                    return f"initial segmenter, validation Dice {begun.score:.3f}; the last step had {last:.3f}"
            return f"last step ({steps})"
        if is_worse:
            begun.give(network)
            return f"initial segmenter, validation Dice {begun.score:.3f}; the best step had {best.score:.3f}"
        self.best.give(network)
        return f"best step ({self.best.step}), validation Dice {self.best.score:.3f}"

    def description(self, step: int) -> str:
        """Describe the best weights of the round that ends before `step`."""
        best = self.best_of_round
        return (
            f"weights after step {step}" if best.score is None else f"best weights of the round, from step {best.step}"
        )
