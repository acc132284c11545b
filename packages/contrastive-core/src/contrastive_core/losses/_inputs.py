"""Prepare the inputs of the losses: checks, working precision, unit vectors, temperature and candidates.

The log-sum-exp over the candidates has two parts: the square form compares the anchors of one process with each other
and computes each similarity once; the rectangular form compares them with the rows of other processes.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contrastive_core.distributed import Gather, gather_labels, gather_rows, split_own, world_size
from contrastive_core.similarity import row_lse, self_lse
from contrastive_core.similarity.api import active_backend
from contrastive_core.similarity.autograd import differentiable_once
from contrastive_core.similarity.precision import HALF_DTYPES, exact_dtype
from contrastive_core.similarity.reference import NO_CLASS
from contrastive_core.similarity.ring import ring_lse
from contrastive_core.synchronization import free_to_read

# The rounding of a similarity is multiplied by 1 / temperature. From this temperature on, float32 stays within 1e-6 of
# float64 (measured for the value and the norm of the gradient, also with outliers and close views); below it, losses
# are computed in float64.
FLOAT32_FROM = 0.1


P = ParamSpec("P")
R = TypeVar("R")


def tensors_first(f: Callable[P, R]) -> Callable[P, R]:
    """Decorate a loss (or a module's `__init__`) so that a setting passed by position raises a helpful error.

    Raises:
        TypeError: The decorated function gets more positional arguments than `f` accepts.
    """
    parameters = inspect.signature(f).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    settings = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    tensors = [name for name in positional if name != "self"]
    numeric = "temperature" if "temperature" in settings else settings[0]
    is_method = "self" in positional

    @functools.wraps(f)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        if len(args) > len(positional):
            argument = args[len(positional)]
            owner = type(args[0]).__name__ if is_method else f.__name__
            text = repr(argument) if isinstance(argument, (int, float, str)) else f"a {type(argument).__name__}"
            setting = numeric if isinstance(argument, (int, float)) else settings[0]
            example = ", ".join([*tensors, f"{setting}={text if isinstance(argument, (int, float, str)) else '...'}"])
            raise TypeError(
                f"{owner}: got {text} as positional argument {len(tensors) + 1}; settings ({', '.join(settings)}) go "
                f"by name, for example {owner}({example})"
            )
        return f(*args, **keywords)

    return call


def check_bank(name: str, bank: object, first: str, second: str) -> None:
    """Raise TypeError if the memory bank is a number, which is probably intended as the temperature."""
    if isinstance(bank, (int, float)) or (isinstance(bank, Tensor) and bank.ndim == 0):
        number = bank.item() if isinstance(bank, Tensor) else bank
        raise TypeError(
            f"{name}: got {number:g} as the third argument, expected a memory bank [M, D]; pass the temperature by "
            f"name: {name}({first}, {second}, temperature={number:g})"
        )


def check_temperature(name: str, temperature: float) -> float:
    """Return the temperature as a number, after checking that it and its inverse are positive and finite.

    Raises:
        TypeError: The temperature is not a number.
        ValueError: The temperature or its inverse is not positive and finite.
    """
    hint = ""
    if isinstance(temperature, Tensor):
        is_float = temperature.is_floating_point()
        hint = " (this loss cannot learn its temperature)" if is_float else f", not a tensor of {temperature.dtype}"
    number = check_number(name, "temperature", temperature, hint)
    # Comparisons, because torch.compile does not support math.isfinite for a symbolic number.
    if not (0 < number < math.inf and 1 / number < math.inf):
        raise ValueError(f"{name}: temperature is {number}, expected a positive finite number; 0.1 is a usual choice")
    return number


def check_number(name: str, setting: str, value: object, hint: str = "") -> float:
    """Return a setting as a number that tensors can be divided by, which they cannot by a Fraction or Decimal.

    Raises:
        TypeError: It is not a number, or it is a bool, a tensor or an array with dimensions.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, (bool, str, Tensor)) or not hasattr(value, "__float__") or getattr(value, "ndim", 0) > 0:
        raise TypeError(f"{name}: {setting} is a {type(value).__name__}, expected a number{hint}")
    return float(value)


def check_floating(name: str, **tensors: Tensor) -> None:
    """Raise TypeError unless every argument is a dense floating-point tensor of at least 16 bits."""
    for argument, x in tensors.items():
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name}: {argument} is {kind}, expected a floating-point tensor{_hint(x)}")
        if x.element_size() < 2:
            raise TypeError(f"{name}: {argument} is {x.dtype}, expected at least 16 bits; convert it with .float()")
        if x.layout != torch.strided:
            raise TypeError(f"{name}: {argument} is {x.layout}, expected a dense tensor; convert it with .to_dense()")


def _hint(argument: object) -> str:
    """Return how to make a tensor of an object that is often passed in place of one."""
    if hasattr(argument, "__array_interface__"):
        return "; convert it with torch.from_numpy"
    return "; pass its rows" if hasattr(argument, "rows") else ""


def check_rows(name: str, **rows: Tensor) -> None:
    """Check that all arguments are floating-point tensors [rows, D] of the same width D on the same device.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: Shapes or devices do not match.
    """
    check_floating(name, **rows)
    for argument, x in rows.items():
        if x.ndim != 2:
            hint = "flatten other dimensions"
            if x.ndim == 3:
                hint = "for several views [N, views, D], pass x.flatten(0, 1), and repeat each label for its views"
            raise ValueError(f"{name}: {argument} has shape {list(x.shape)}, expected [N, D]; {hint}")
        if x.shape[1] == 0:
            raise ValueError(f"{name}: {argument} has shape {list(x.shape)}, expected at least one feature")
    widths, devices = {x.shape[1] for x in rows.values()}, {x.device for x in rows.values()}
    if len(widths) > 1:
        shapes = ", ".join(f"{argument} {list(x.shape)}" for argument, x in rows.items())
        raise ValueError(f"{name}: got {shapes}, expected embeddings of the same width D")
    if len(devices) > 1:
        locations = ", ".join(f"{argument} on {x.device}" for argument, x in rows.items())
        raise ValueError(f"{name}: got {locations}, expected all on the same device")


def check_same_count(name: str, **rows: Tensor) -> None:
    """Raise ValueError unless all arguments have the same number of rows."""
    if len({len(x) for x in rows.values()}) > 1:
        shapes = ", ".join(f"{argument} {list(x.shape)}" for argument, x in rows.items())
        raise ValueError(
            f"{name}: got {shapes}, expected the same number of rows, because row i of each belongs to sample i"
        )


def check_at_least_two(name: str, count: int) -> None:
    """Raise ValueError for a batch of fewer than two samples, in which nothing can be contrasted."""
    if count < 2:
        raise ValueError(
            f"{name}: got {count} sample(s), expected at least 2, because an anchor is compared with other samples"
        )


def result_dtype(*inputs: Tensor) -> torch.dtype:
    """Return float64 if one of the inputs is float64, else float32."""
    dtype = torch.float32
    for x in inputs:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def working_dtype(*inputs: Tensor, temperature: float) -> torch.dtype:
    """Return the type in which a loss is computed: that of its result, or float64 at low temperatures (except on MPS).

    For float16 and bfloat16 inputs on CUDA it is always float32, because float64 is slow on GPUs and the rounding error
    of the inputs is larger than that of float32.
    """
    if temperature >= FLOAT32_FROM or (inputs[0].is_cuda and are_half(*inputs)):
        return result_dtype(*inputs)
    return exact_dtype(inputs[0])


def are_half(*inputs: Tensor) -> bool:
    """Return whether all inputs are float16 or bfloat16, so that rounding their unit vectors to 11 bits adds little."""
    return all(x.dtype in HALF_DTYPES for x in inputs)


def unit_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalise rows of any magnitude to unit length, x_i / |x_i|, in `dtype`: [..., D] -> [..., D].

    A row of zeros remains zero (it has similarity 0 with every row), and its gradient is zero.
    """
    return active_backend().unit_rows(x, dtype)


def paired_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Compute a_i . b_i for unit rows: [N, D], [N, D] -> [N] in float64."""
    return active_backend().paired_similarity(a, b)


class Temperature:
    """Temperature of one call of a loss.

    The similarity operators take the temperature as a number. A learned temperature receives its gradient through the
    rows: with f = sqrt(t0 / t), where t0 = t is held constant, S = (f z_i . f z_j) / t0 is the same number, and
    dS/dt = -S / t.

    Args:
        name: Name of the loss, for error messages.
        temperature: Positive number, or a tensor with one element, which is learned if it requires a gradient.

    Raises:
        TypeError, ValueError: As in :func:`check_temperature`, or if a tensor has several elements.
    """

    def __init__(self, name: str, temperature: float | Tensor) -> None:
        self.value = check_learned_temperature(name, temperature)
        self.parameter: float | Tensor = (
            temperature.double().reshape(()) if isinstance(temperature, Tensor) else self.value
        )

    @property
    def scale(self) -> float:
        """One over the temperature, as a number."""
        return 1 / self.value

    def link(self, rows: Tensor) -> Tensor:
        """Return the rows such that products of two of them propagate a gradient to the temperature."""
        # The link does not depend on requires_grad: in forward mode and under torch.func, there may be a tangent.
        if not isinstance(self.parameter, Tensor):
            return rows
        return rows * (self.parameter.detach() / self.parameter).sqrt().to(rows.device, rows.dtype)

    def divide(self, similarities: Tensor) -> Tensor:
        """Divide similarities by the temperature, with a gradient with respect to the temperature."""
        if isinstance(self.parameter, Tensor):
            return similarities / self.parameter.to(similarities.device, similarities.dtype)
        return similarities / self.parameter


def check_learned_temperature(name: str, temperature: float | Tensor) -> float:
    """Check a temperature as :func:`check_temperature` does, but accept a tensor with one element."""
    if isinstance(temperature, Tensor) and temperature.is_floating_point():
        if temperature.numel() != 1:
            raise ValueError(f"{name}: temperature has shape {list(temperature.shape)}, expected one number")
        return check_temperature(name, _host_number(name, temperature))
    return check_temperature(name, temperature)  # type: ignore[arg-type] # rejects other tensors


def _host_number(name: str, temperature: Tensor) -> float:
    try:
        return float(temperature.detach())
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        raise RuntimeError(
            f"{name}: torch.vmap cannot run over the temperature, because the loss reads its value; call the loss once "
            "for each temperature instead"
        ) from error


def check_label_smoothing(name: str, label_smoothing: float) -> float:
    """Return label smoothing as a number, after checking that it is in [0, 1).

    Raises:
        TypeError: It is not a number.
        ValueError: It is outside [0, 1).
    """
    number = check_number(name, "label_smoothing", label_smoothing)
    if not 0 <= number < 1:
        raise ValueError(f"{name}: label_smoothing is {number}, expected a number in [0, 1)")
    return number


class LossModule(nn.Module):
    """Base class of the losses that are modules, whose settings are keywords of `__init__` and attributes."""

    def extra_repr(self) -> str:
        keywords = [p.name for p in inspect.signature(self.__class__).parameters.values() if p.kind is p.KEYWORD_ONLY]
        return ", ".join(f"{name}={_format_setting(getattr(self, name))}" for name in keywords)


class PairLoss(LossModule):
    """Base class of the losses of two views, whose settings are the temperature and `gather`."""

    @tensors_first
    def __init__(self, *, temperature: float | Tensor = 0.1, gather: Gather = False) -> None:
        super().__init__()
        check_learned_temperature(type(self).__name__, temperature)
        self.temperature, self.gather = temperature, gather


def _format_setting(setting: object) -> str:
    return f"{setting.item():g}, learned" if isinstance(setting, nn.Parameter) else f"{setting}"


class PairInputs:
    """Checked inputs of a loss of two views [N, D] and an optional memory bank [M, D].

    Args:
        name: Name of the loss, for error messages.
        bank: Memory bank; None for no bank.
        temperature: Temperature.
        views: The two views by name.

    Attributes:
        temperature: Temperature of the call.
        dtype: Data type of the computation.
        half: Whether all inputs have half precision.
        result: Data type of the loss.
        bank: Rows of the bank, l2-normalised and linked to the temperature; None for no bank.

    Raises:
        TypeError, ValueError: The bank is not a tensor, shapes or types are wrong, or the temperature is not positive.
    """

    def __init__(self, name: str, bank: Tensor | None, temperature: float | Tensor, **views: Tensor) -> None:
        check_bank(name, bank, *views)
        self.temperature = Temperature(name, temperature)
        inputs = views | ({} if bank is None else {"bank": bank})
        check_rows(name, **inputs)
        check_same_count(name, **views)
        self.dtype = working_dtype(*inputs.values(), temperature=self.temperature.value)
        self.half, self.result = are_half(*inputs.values()), result_dtype(*inputs.values())
        self.bank = None if bank is None else self.temperature.link(unit_rows(bank, self.dtype))
        self._inputs = tuple(inputs.values())

    def mean(self, losses: Tensor) -> Tensor:
        """Return the mean over the anchors in the data type of the loss."""
        return differentiable_once(losses.mean().to(self.result), *self._inputs)

    def add_bank(self, rest: Tensor, linked: Tensor) -> Tensor:
        """Add the rows of the bank to the log-sum-exp [N] of the other candidates of the linked rows [N, D]."""
        if self.bank is None:
            return rest
        of_bank = row_lse(linked, self.bank, scale=self.temperature.scale, max_norm=1.0, half=self.half)
        return log_add(rest, of_bank)


Way = Literal["alone", "all", "ring"]
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """Compute log(exp a + exp b), where either may be -inf and then has derivatives of 0.

    The first derivative of torch.logaddexp is NaN where both are -inf, and its second derivative is NaN wherever a and
    b are far apart.
    """
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    alone = low == -torch.inf
    return torch.where(alone, high, high + F.softplus(low - high.masked_fill(alone, 0.0)))


def lse_among_all(
    z: Tensor, *, scale: float, way: Way, half: bool, skip: int | None = None, all_rows: Tensor | None = None
) -> Tensor:
    """Compute the log-sum-exp of each anchor's similarities to all other rows, except those at distance `skip` in z.

    Args:
        z: Anchors of this process, unit vectors [n, D].
        scale: One over the temperature.
        way: How the rows of other processes are exchanged, from `how_to_gather`.
        half: As in :func:`contrastive_core.similarity.self_lse`.
        skip: As in :func:`contrastive_core.similarity.self_lse`.
        all_rows: Rows of all processes, if they are already gathered.

    Returns:
        Log-sum-exp [n].
    """
    own = self_lse(z, scale=scale, skip=skip, max_norm=1.0, half=half)
    if way == "alone":
        return own
    return log_add(own, lse_of_others(z, z, scale=scale, way=way, half=half, all_rows=all_rows))


def lse_of_others(
    q: Tensor, k: Tensor, *, scale: float, way: Way, half: bool, all_rows: Tensor | None = None
) -> Tensor:
    """Compute the log-sum-exp of the queries' similarities to the keys of the other processes: [n, D], [n, D] -> [n].

    `all_rows` holds the keys of all processes if they are already gathered.
    """
    if way == "ring":
        return ring_lse(q, k, scale=scale)[0]
    others = split_own(gather_rows(k) if all_rows is None else all_rows)[1]
    return row_lse(q, others, scale=scale, max_norm=1.0, half=half)


def lse_by_class(
    z: Tensor, labels: Tensor, *, scale: float, way: Way, half: bool, with_ignored: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute the log-sum-exp over the anchor's class (itself excluded) and that over the other classes, each [n].

    Rows are sorted by class, so that most tiles hold pairs of the same class or of different classes only, and both
    results together cost little more than one pass over the matrix. With `with_ignored`, rows labelled NO_CLASS are
    excluded as candidates, and their own results are meaningless. After sorting they come last; if their number can be
    read without synchronisation, they are not computed.
    """
    z, labels, back = _by_class(z, labels)
    count = count_labelled(labels) if with_ignored and free_to_read(labels) else len(labels)
    own, classes = z[:count], labels[:count]
    same = _pad(self_lse(own, scale=scale, classes=classes, among="same", max_norm=1.0), len(z))
    different = _pad(self_lse(own, scale=scale, classes=classes, among="other", max_norm=1.0, half=half), len(z))
    if way == "ring":
        others_same, others_different = ring_lse(z, z, scale=scale, classes=(labels, labels))
        same, different = log_add(same, others_same), log_add(different, others_different)
    elif way == "all":
        others, other_labels, _ = _by_class(split_own(gather_rows(z))[1], split_own(gather_rows(labels))[1])
        count = count_labelled(other_labels) if with_ignored and free_to_read(labels) else len(other_labels)
        others, pair = others[:count], (labels, other_labels[:count])
        same = log_add(same, row_lse(z, others, scale=scale, classes=pair, among="same"))
        of_others = row_lse(z, others, scale=scale, classes=pair, among="other", max_norm=1.0, half=half)
        different = log_add(different, of_others)
    return same.index_select(0, back), different.index_select(0, back)


def _by_class(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort rows and labels by label; return both and the indices that restore the original order."""
    labels, order = labels.sort(stable=True)
    return z.index_select(0, order), labels, order.argsort()


def _pad(lse: Tensor, count: int) -> Tensor:
    return lse if len(lse) == count else torch.cat([lse, lse.new_full((count - len(lse),), -torch.inf)])


def count_skipped_anchors(labels: Tensor, *, ignore_index: int | None = None, gather: bool = False) -> Tensor:
    """Count the labelled anchors that are the only sample of their class, which `suncet` and `supcon` exclude.

    Args:
        labels: Integers [N].
        ignore_index: Label of unlabelled samples, which are not counted.
        gather: Whether to count the anchors of all processes, with positives from all processes.

    Returns:
        Number of anchors, an int64 scalar on the labels' device.

    Raises:
        TypeError, ValueError: Labels are not integers [N], or a label other than `ignore_index` is negative; with
            `gather`, the number of labels differs between processes.

    >>> count_skipped_anchors(torch.tensor([0, 1, 1, 2]))
    tensor(2)
    """
    labels = class_numbers("count_skipped_anchors", labels, ignore_index=ignore_index, wait=True)
    return find_positives(labels, gather=gather).skipped


def class_numbers(
    name: str, labels: Tensor, *, rows: Tensor | None = None, ignore_index: int | None = None, wait: bool = False
) -> Tensor:
    """Check labels and return them as int64 [N], with NO_CLASS where they equal `ignore_index`.

    A negative number nearly always marks unlabelled samples; used as a class, it would pull all of them together. On a
    GPU, the numbers are checked only with `wait`, because reading them makes the host wait. Without `wait`, negative
    numbers are returned, and :meth:`Positives.mean` gives NaN.

    Raises:
        TypeError: Labels are not integers, or ignore_index is not an integer.
        ValueError: There is not one label for each of `rows`, or a label other than `ignore_index` is negative.
    """
    if not isinstance(labels, Tensor) or labels.dtype not in _INTEGERS:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name}: labels are {kind}, expected an integer tensor [N] of class numbers")
    expected = "[N]" if rows is None else f"[{len(rows)}], one per embedding"
    if labels.ndim != 1 or (rows is not None and len(labels) != len(rows)):
        hint = ""
        if labels.ndim == 2:  # argmax would turn a column of class numbers into zeros
            hint = (
                "; remove the dimension with squeeze(1)"
                if labels.shape[1] == 1
                else "; turn one-hot labels into numbers with argmax(1)"
            )
        raise ValueError(f"{name}: labels have shape {list(labels.shape)}, expected {expected}{hint}")
    check_ignore_index(name, ignore_index, labels)
    read = wait or free_to_read(labels)  # before labels on the host are moved to the device
    operator: Any = _class_numbers
    if torch.compiler.is_compiling():
        numbers: Tensor = operator(labels, name, ignore_index, read)
    else:
        try:
            numbers = _as_class_numbers(labels, name, ignore_index, read)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            numbers = operator(labels, name, ignore_index, read)
    return numbers if rows is None else numbers.to(rows.device)


def without_ignored(rows: Tensor, labels: Tensor) -> Tensor:
    """Replace rows labelled NO_CLASS by zeros, so that neither their values nor their gradients can be NaN.

    Rows that are excluded after they have been normalised would still get a gradient of NaN, because the backward pass
    multiplies their zero gradient by the row itself.

    Args:
        rows: Embeddings [N, D], not yet normalised.
        labels: Labels from :func:`class_numbers`, int64 [N].
    """
    return rows.masked_fill((labels == NO_CLASS)[:, None], 0.0)


def check_ignore_index(name: str, ignore_index: int | None, labels: Tensor | None = None) -> None:
    """Check that ignore_index is None, or an integer that the type of the labels can hold.

    PyTorch converts a number outside the range of a type before it compares, so that -1 equals 255 and 256 equals 0 in
    labels of 8 bits, and a class would be ignored.

    Raises:
        TypeError: It is not an integer.
        ValueError: The labels cannot hold it.
    """
    if ignore_index is None:
        return
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"{name}: ignore_index is {ignore_index!r}, expected an integer or None")
    if labels is not None:
        limits = torch.iinfo(labels.dtype)
        if not limits.min <= ignore_index <= limits.max:
            raise ValueError(
                f"{name}: ignore_index is {ignore_index}, but labels of type {labels.dtype} hold {limits.min} to "
                f"{limits.max}; pass the number that marks unlabelled ones in this type, or labels of type torch.int64"
            )


def _as_class_numbers(labels: Tensor, name: str, ignore_index: int | None, read: bool) -> Tensor:
    numbers = labels.to(torch.int64, copy=True, memory_format=torch.contiguous_format)
    if read and labels.dtype == torch.int64 and labels.numel() and int(labels.amax()) == NO_CLASS != ignore_index:
        raise ValueError(
            f"{name}: the largest label is {NO_CLASS}, which marks unlabelled samples internally; expected smaller "
            "class numbers"
        )
    if ignore_index is not None:
        numbers.masked_fill_(labels == ignore_index, NO_CLASS)
    if read and labels.dtype != torch.uint8 and labels.numel():
        lowest = int(numbers.amin())
        if lowest < 0:
            hint = (
                f"pass ignore_index={lowest} if this number marks unlabelled samples"
                if ignore_index is None
                else f"the ignore_index is {ignore_index}"
            )
            raise ValueError(f"{name}: the smallest label is {lowest}, expected class numbers from 0; {hint}")
    return numbers


# A custom operator can read values without breaking the graph of torch.compile, and it supports torch.vmap.
_class_numbers = torch.library.custom_op("contrastive_core::class_numbers", _as_class_numbers, mutates_args=())


@_class_numbers.register_fake
def _(labels: Tensor, name: str, ignore_index: int | None, read: bool) -> Tensor:
    return labels.new_empty(labels.shape, dtype=torch.int64)


def _map_class_numbers(info: object, in_dims: tuple[int, ...], labels: Tensor, *others: Any) -> tuple[Tensor, int]:
    numbers: Tensor = torch.ops.contrastive_core.class_numbers(labels.movedim(in_dims[0], 0), *others)
    return numbers, 0


_class_numbers.register_vmap(_map_class_numbers)


def refuse_vmap_over_labels(name: str, labels: Tensor) -> None:
    """Raise RuntimeError under torch.vmap over the labels, for losses whose sizes depend on their values."""
    if torch.compiler.is_compiling() or not free_to_read(labels):
        return
    try:
        count_labelled(labels)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        raise RuntimeError(
            f"{name}: torch.vmap cannot run over these labels, because the loss counts classes or unlabelled samples; "
            "call the loss once for each element instead"
        ) from error


def count_labelled(labels: Tensor) -> int:
    """Count the labels other than NO_CLASS."""
    return int((labels != NO_CLASS).sum())


@dataclass(frozen=True)
class Positives:
    """Labels and numbers of positives of this process's n anchors among all N candidates."""

    own: Tensor
    """Labels [n] of the anchors; NO_CLASS for unlabelled ones."""
    all_labels: Tensor
    """Labels [N] of the candidates: those of all processes, in rank order."""
    classmates: Tensor
    """Number of positives of each anchor, excluding the anchor itself: int64 [n]."""
    group: Tensor
    """Index of each candidate's class in 0 .. N-1: int64 [N], equal for equal classes, not consecutive."""
    anchors: Tensor
    """Number of candidates that have a positive: int64 scalar."""
    skipped: Tensor
    """Number of labelled candidates without a positive: int64 scalar."""
    processes: int
    """Number of processes that hold the candidates."""
    valid: Tensor
    """Whether no label is negative: bool scalar."""

    @property
    def live(self) -> Tensor:
        """Mask of the anchors that have a positive: bool [n]."""
        return self.classmates > 0

    def mean(self, losses: Tensor) -> Tensor:
        """Divide the sum of this process's live losses [n] by the mean number of live anchors per process.

        Live anchors are those that have a positive. For one process, the result is the mean over its live anchors.
        Several processes may skip different numbers of anchors; the mean of their results is then the mean over all
        live anchors. The result is exactly 0 without live anchors, and NaN, with a gradient of NaN, if a label is
        negative.
        """
        return self.or_nan(torch.where(self.live, losses, 0.0).sum()) * self.processes / self.anchors.clamp(min=1)

    def or_nan(self, loss: Tensor) -> Tensor:
        """Return the loss, or NaN if a label is negative; labels on the CPU have already been checked."""
        return loss if free_to_read(self.valid) else loss * torch.where(self.valid, 1.0, torch.nan)


def find_positives(labels: Tensor, *, gather: bool) -> Positives:
    """Count each anchor's positives by sorted search, in O(N log N), with static shapes and no synchronisation.

    Args:
        labels: Labels from :func:`class_numbers`, int64 [n].
        gather: Whether the candidates are those of all processes.
    """
    all_labels = gather_labels(labels) if gather else labels
    sorted_labels = all_labels.sort().values
    first, end = (torch.searchsorted(sorted_labels, all_labels, right=right) for right in (False, True))
    own_first, own_end = (torch.searchsorted(sorted_labels, labels, right=right) for right in (False, True))
    is_labelled = all_labels != NO_CLASS
    anchors = (is_labelled & (end - first > 1)).sum()
    return Positives(
        own=labels,
        all_labels=all_labels,
        classmates=torch.where(labels != NO_CLASS, own_end - own_first - 1, 0),
        group=first,
        anchors=anchors,
        skipped=is_labelled.sum() - anchors,
        processes=world_size() if gather else 1,
        valid=(sorted_labels[:1] >= 0).all(),
    )
