"""A program for tests of command lines, with two verbs: `fit`, which has every kind of flag, and `check`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from contrastive_core.app.cli import Verb
from contrastive_core.errors import UserError
from contrastive_core.training import RunOptions


@dataclass(frozen=True)
class Rate:
    """The learning rate.

    Args:
        peak: Its largest value.
        warmup: Steps to get there.
    """

    peak: float = 0.1
    warmup: int | None = None


@dataclass(frozen=True)
class Optimizer:
    """The optimiser.

    Attributes:
        name: Which one.
        rate: Its learning rate.
        betas: Two numbers.
        fused: In one kernel.
    """

    name: Literal["sgd", "lars"] = "sgd"
    rate: Rate = Rate()
    betas: tuple[float, float] = (0.9, 0.999)
    fused: bool = False

    def __post_init__(self) -> None:
        if self.rate.peak < 0:
            raise UserError(f"optimizer.rate.peak is {self.rate.peak}; expected at least 0")


@dataclass(frozen=True)
class Net:
    """The network."""

    name: str = "resnet18"
    widths: list[int] = field(default_factory=lambda: [1, 2])


@dataclass(frozen=True)
class Head:
    """An optional part.

    Args:
        kind: Which one.
        sizes: Its layers.
        bias: With an offset.
    """

    kind: Literal["linear", "mlp"] = "linear"
    sizes: tuple[int, ...] = ()
    bias: bool = False


def fit(
    data: str,
    out: Path,
    *,
    steps: int = 10,
    lr: float = 1e-6,
    splits: list[str] | None = None,
    table: dict[str, int] | None = None,
    teacher: Path | None = None,
    shuffle: bool = True,
    tta: bool | None = None,
    optimizer: Optimizer = Optimizer(),
    net: Net = Net(),
    head: Head | None = None,
    run: RunOptions = RunOptions(),  # noqa: B008
) -> dict[str, Any]:
    """Fit a network.

    It takes a while.

    Args:
        data: What to learn from.
        out: Where to write.
        steps: How long.
    """
    return dict(locals())


VERBS = {"fit": Verb("toy_verbs:fit", "fit a network"), "check": Verb("toy_verbs:check", "look at the data")}
DEFAULTS = fit("d", Path("o"))


def fit_noting(got: dict[str, Any]) -> Callable[..., None]:
    """`fit`, recording its arguments."""

    @functools.wraps(fit)
    def noting(*args: Any, **keywords: Any) -> None:
        got.update(fit(*args, **keywords))

    return noting
