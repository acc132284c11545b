"""Input checks, working precision, unit vectors and temperature of the losses."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from contrastive_core.similarity.api import active_backend
from contrastive_core.similarity.precision import HALF_DTYPES, exact_dtype

# The rounding of a similarity is multiplied by 1 / temperature. From this temperature on, float32 stays within 1e-6 of
# float64 (measured for the value and the norm of the gradient, also with outliers and close views); below it, losses
# are computed in float64.
FLOAT32_FROM = 0.1


P = ParamSpec("P")
R = TypeVar("R")


def tensors_first(f: Callable[P, R]) -> Callable[P, R]:
    """Decorate a loss (or a module's `__init__`) to explain keyword-only settings when one is passed by position.

    Raises:
        TypeError: There are more positional arguments than `f` takes.
    """
    parameters = inspect.signature(f).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    settings = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    tensors = [name for name in positional if name != "self"]
    owner = f.__qualname__.removesuffix(".__init__")
    numeric = "temperature" if "temperature" in settings else settings[0]

    @functools.wraps(f)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        if len(args) > len(positional):
            found = args[len(positional)]
            shown = repr(found) if isinstance(found, (int, float, str)) else f"a {type(found).__name__}"
            setting = numeric if isinstance(found, (int, float)) else settings[0]
            example = ", ".join([*tensors, f"{setting}={shown if isinstance(found, (int, float, str)) else '...'}"])
            raise TypeError(
                f"{owner}: got {shown} as positional argument {len(tensors) + 1}; settings ({', '.join(settings)}) go "
                f"by name, for example {owner}({example})"
            )
        return f(*args, **keywords)

    return call


def check_bank(name: str, bank: object, first: str, second: str) -> None:
    """Raise TypeError if the memory bank is a number, which is probably meant to be the temperature."""
    if isinstance(bank, (int, float)) or (isinstance(bank, Tensor) and bank.ndim == 0):
        shown = bank.item() if isinstance(bank, Tensor) else bank
        raise TypeError(
            f"{name}: got {shown:g} as the memory bank, the third argument; if it is the temperature, pass it by name: "
            f"{name}({first}, {second}, temperature={shown:g})"
        )


def check_temperature(name: str, temperature: float) -> None:
    """Raise TypeError unless temperature is a number, ValueError unless it and its inverse are positive and finite."""
    if isinstance(temperature, (bool, str, Tensor)) or not hasattr(temperature, "__float__"):
        found = type(temperature).__name__
        raise TypeError(f"{name}: temperature is a {found}, expected a number (it is not a learned parameter here)")
    # Comparisons, because torch.compile does not support math.isfinite for a symbolic number.
    if not (0 < temperature < math.inf and 1 / temperature < math.inf):
        raise ValueError(
            f"{name}: temperature is {temperature}, expected a positive finite number; 0.1 is a usual choice"
        )


def check_floating(name: str, **tensors: Tensor) -> None:
    """Raise TypeError unless every argument is a floating-point tensor."""
    for argument, x in tensors.items():
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name}: {argument} is {kind}, expected a floating-point tensor")


def check_rows(name: str, **rows: Tensor) -> None:
    """Raise TypeError unless every argument is floating point, ValueError unless all are [rows, D] with the same D."""
    check_floating(name, **rows)
    for argument, x in rows.items():
        if x.ndim != 2:
            raise ValueError(f"{name}: {argument} has shape {list(x.shape)}, expected [N, D]; flatten other dimensions")
    widths, devices = {x.shape[1] for x in rows.values()}, {x.device for x in rows.values()}
    if len(widths) > 1:
        found = ", ".join(f"{argument} {list(x.shape)}" for argument, x in rows.items())
        raise ValueError(f"{name}: got {found}, expected embeddings of the same width D")
    if len(devices) > 1:
        found = ", ".join(f"{argument} on {x.device}" for argument, x in rows.items())
        raise ValueError(f"{name}: got {found}, expected one device")


def check_same_count(name: str, **rows: Tensor) -> None:
    """Raise ValueError unless all have the same number of rows."""
    if len({len(x) for x in rows.values()}) > 1:
        found = ", ".join(f"{argument} {list(x.shape)}" for argument, x in rows.items())
        raise ValueError(f"{name}: got {found}, expected as many rows: row i of each belongs to sample i")


def check_at_least_two(name: str, count: int) -> None:
    """Raise ValueError for a batch of fewer than two samples, in which nothing can be contrasted."""
    if count < 2:
        raise ValueError(
            f"{name}: got {count} sample(s), expected at least 2: an anchor is compared with other samples"
        )


def result_dtype(*inputs: Tensor) -> torch.dtype:
    """Return float64 if one of the inputs is float64, else float32."""
    dtype = torch.float32
    for x in inputs:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def working_dtype(*inputs: Tensor, temperature: float) -> torch.dtype:
    """Return the type a loss computes in: that of its result, or float64 at low temperatures (except on MPS).

    Float16 and bfloat16 inputs on CUDA use float32: float64 is slow there, and the rounding of the inputs is larger.
    """
    if temperature >= FLOAT32_FROM or (inputs[0].is_cuda and are_half(*inputs)):
        return result_dtype(*inputs)
    return exact_dtype(inputs[0])


def are_half(*inputs: Tensor) -> bool:
    """Return whether all inputs are float16 or bfloat16, so that rounding to 11 bits adds little error."""
    return all(x.dtype in HALF_DTYPES for x in inputs)


def unit_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalise rows of any magnitude to unit length, x_i / |x_i|, in `dtype`: [..., D] -> [..., D].

    A row of zeros has no direction: it stays zero (similarity 0 with everything) and its gradient is zero.
    """
    return active_backend().unit_rows(x, dtype)


def paired_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Compute a_i . b_i for unit rows: [N, D], [N, D] -> [N] in float64."""
    return active_backend().paired_similarity(a, b)


class Temperature:
    """Temperature of one call of a loss.

    The similarity operators take it as a number. A learned temperature receives its gradient through the rows: with
    f = sqrt(t0 / t), where t0 = t is held constant, S = (f z_i . f z_j) / t0 is the same number and dS/dt = -S / t.

    Args:
        name: Name of the loss, for error messages.
        given: Positive number, or a tensor with one element, which is learned if it requires a gradient.

    Raises:
        TypeError, ValueError: As for :func:`check_temperature`; or a tensor has several elements.
    """

    def __init__(self, name: str, given: float | Tensor) -> None:
        check_learned_temperature(name, given)
        self.given: float | Tensor = given.double().reshape(()) if isinstance(given, Tensor) else given
        self.value = _host_number(name, given) if isinstance(given, Tensor) else given

    @property
    def scale(self) -> float:
        """Return one over the temperature, as a number."""
        return 1 / self.value

    def link(self, rows: Tensor) -> Tensor:
        """Return the rows, linked so that products of two of them propagate a gradient to the temperature."""
        # Also without requires_grad: in forward mode and under torch.func it may have a tangent instead.
        if not isinstance(self.given, Tensor):
            return rows
        return rows * (self.given.detach() / self.given).sqrt().to(rows.device, rows.dtype)

    def divide(self, similarities: Tensor) -> Tensor:
        """Divide similarities by the temperature, with gradient to it."""
        if isinstance(self.given, Tensor):
            return similarities / self.given.to(similarities.device, similarities.dtype)
        return similarities / self.given


def check_learned_temperature(name: str, given: float | Tensor) -> None:
    """Check a temperature as :func:`check_temperature` does, but accept a tensor with one element."""
    if isinstance(given, Tensor) and given.is_floating_point():
        if given.numel() != 1:
            raise ValueError(f"{name}: temperature has shape {list(given.shape)}, expected one number")
        check_temperature(name, _host_number(name, given))
    else:
        check_temperature(name, given)  # type: ignore[arg-type] # rejects other tensors


def _host_number(name: str, given: Tensor) -> float:
    try:
        return float(given.detach())
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        raise RuntimeError(
            f"{name}: torch.vmap runs over the temperature, whose value the loss has to read; call the loss once for "
            "each temperature instead"
        ) from error


def shown(given: float | Tensor) -> str:
    """Format a temperature for a module's `extra_repr`."""
    return f"{given.item():g}, learned" if isinstance(given, torch.nn.Parameter) else f"{given}"
