"""Take the logits out of the output of a network, and recognise outputs that are no logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from contrastive_core.errors import UserError
from ssl_video.models.networks import are_probabilities, logits_in

_MANY, _MANY_CLASSES = 32, 10
"""Number of values from 0 to 1 that are taken for the output of a sigmoid if the operation that made them is not known.
Logits of an untrained network keep their sign from clip to clip, so that only many classes tell them apart."""

# Operations of autograd: those after which outputs of a sigmoid remain between 0 and 1, and those of linear layers.
_KEEPING = (
    "AdaptiveAvgPool", "Alias", "AvgPool", "Clone", "DDPSink", "Expand", "Mean", "Narrow", "Permute", "Reshape",
    "Select", "Slice", "Split", "Squeeze", "ToCopy", "Transpose", "Unsqueeze", "UnsafeView", "View",
)  # fmt: skip
_LINEAR = ("Addmm", "Baddbmm", "Bmm", "Convolution", "Linear", "MkldnnLinear", "Mm", "Mv", "SlowConv")
_BOUNDED = {"Sigmoid": "sigmoid", "Softmax": "softmax"}


class NetworkOutputError(UserError, ValueError):
    """The output of a network is not one row of logits per clip."""


def logits_of(output: Any, *, clips: int, classes: int) -> Tensor:
    """Return the logits in the output of a network, ``[clips, classes]``.

    Raises:
        NetworkOutputError: There are none, or they have another shape.
    """
    logits = logits_in(output)
    if logits is None:
        entries = f" with the entries {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
        raise NetworkOutputError(
            f"the network returned a {type(output).__name__}{entries}, without logits; {_shape_text(clips, classes)}"
        )
    if logits.shape != (clips, classes):
        raise NetworkOutputError(f"the network returned {list(logits.shape)}; {_shape_text(clips, classes)}")
    return logits


def check_unbounded(logits: Tensor) -> None:
    """Check that `logits` ``[N, K]`` are not the output of a softmax or a sigmoid.

    Autograd knows the operation that computed them, if they have a gradient. If it is neither one of these nor of a
    linear layer, as for compiled networks, the values decide: rows that sum to 1 are probabilities; for ten classes or
    more, values that all lie between 0 and 1 are the output of a sigmoid.

    Raises:
        NetworkOutputError: They are; cross-entropy of such values cannot become small.
    """
    clips, classes = logits.shape
    last = _last_operation(logits)
    if last in _BOUNDED:
        raise NetworkOutputError(
            f"the network ends in a {_BOUNDED[last]}, so that its output lies between 0 and 1; "
            f"{_shape_text(clips, classes)}. Remove its last activation (for PyTorchVideo's X3D: head_activation=None)"
        )
    if last.startswith(_LINEAR):
        return
    if are_probabilities(logits):
        raise NetworkOutputError(
            f"the network returned probabilities: every row sums to 1; {_shape_text(clips, classes)}. Remove its last "
            "softmax (for PyTorchVideo's X3D: head_activation=None)"
        )
    values = logits.detach().float()
    if values.numel() >= _MANY and classes >= _MANY_CLASSES and (values >= 0).all() and (values <= 1).all():
        raise NetworkOutputError(
            f"the network returned {values.numel()} values between 0 and 1, as after a sigmoid; "
            f"{_shape_text(clips, classes)}. Remove its last activation"
        )


def check_same_in_evaluation(labelling: Tensor, training: Tensor) -> None:
    """Check that a network does not return probabilities in evaluation mode that are logits in training mode.

    Args:
        labelling: Output in evaluation mode ``[N, K]``.
        training: Output in training mode ``[N', K]``.

    Raises:
        NetworkOutputError: It does, as networks of SlowFast do.
    """
    if are_probabilities(labelling) and not are_probabilities(training):
        raise NetworkOutputError(
            "the network returns logits in training mode, but probabilities in evaluation mode, in which it makes the "
            "pseudo-labels and is tested; expected logits in both modes. Remove its last softmax"
        )


def _shape_text(clips: int, classes: int) -> str:
    return f"expected logits [{clips}, {classes}] for classes={classes}"


def _last_operation(logits: Tensor) -> str:
    """Return the operation that computed the values, such as Addmm, or an empty string if it is not known."""
    node = logits.grad_fn
    while node is not None:
        name = node.name().lstrip("_").removesuffix("Backward").partition("Backward")[0]
        if not name.startswith(_KEEPING) or len(node.next_functions) != 1:
            return name
        node = node.next_functions[0][0]
    return ""
