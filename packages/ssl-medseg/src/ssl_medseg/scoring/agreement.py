"""Agreement of two measurements of the same quantity after Bland and Altman (Stat Methods Med Res 1999)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_NORMAL_95 = 1.96


@dataclass(frozen=True)
class BlandAltman:
    """Differences of predicted and true volumes, in the unit of the volumes.

    Attributes:
        n: pairs.
        bias: mean difference, predicted less true.
        sd: standard deviation of the differences (n - 1).
        lower: bias - 1.96 sd: about 95 % of differences are expected above it.
        upper: bias + 1.96 sd.
        bias_interval: 95 % confidence interval of the bias.
        lower_interval: of the lower limit.
        upper_interval: of the upper limit.
    """

    n: int
    bias: float
    sd: float
    lower: float
    upper: float
    bias_interval: tuple[float, float]
    lower_interval: tuple[float, float]
    upper_interval: tuple[float, float]


def bland_altman(truth: Sequence[float], predicted: Sequence[float]) -> BlandAltman | None:
    """Bias and limits of agreement with their confidence intervals; None for fewer than two pairs.

    The standard error of the bias is ``sd / sqrt(n)``, that of a limit ``sd sqrt(1/n + 1.96^2 / (2 (n - 1)))``, and
    intervals use Student's t with n - 1 degrees of freedom. They hold for independent pairs: two volumes of one
    patient are not.
    """
    difference = np.asarray(predicted, dtype=np.float64) - np.asarray(truth, dtype=np.float64)
    n = len(difference)
    if n < 2:
        return None
    bias, sd = float(difference.mean()), float(difference.std(ddof=1))
    t = float(stats.t.ppf(0.975, n - 1))
    wide, wider = t * sd / n**0.5, t * sd * (1 / n + _NORMAL_95**2 / (2 * (n - 1))) ** 0.5
    lower, upper = bias - _NORMAL_95 * sd, bias + _NORMAL_95 * sd
    return BlandAltman(
        n, bias, sd, lower, upper, (bias - wide, bias + wide), (lower - wider, lower + wider),
        (upper - wider, upper + wider),
    )  # fmt: skip
