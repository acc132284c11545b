"""Options that several packages share: their checks, and the help of options that inherit from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from contrastive_core.app.flags import Flags, field_texts
from contrastive_core.app.help import help_text
from contrastive_core.errors import UserError
from contrastive_core.training import DrawOptions, InferenceOptions, SkipOptions
from contrastive_core.training.config import check_fields


@dataclass(frozen=True)
class LargeBatches(InferenceOptions):
    """Batch size and device of a command that has other defaults.

    Args:
        extra: Further setting.
    """

    batch_size: int = 512
    extra: float = 0.5


def command(data: str, *, inference: LargeBatches = LargeBatches()) -> None:
    """Apply a model.

    Args:
        data: Data set.
        inference: Batch size and device.
    """


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (InferenceOptions, {"batch_size": 0}, "batch_size is 0; expected a whole number of at least 1"),
        (InferenceOptions, {"batch_size": True}, "batch_size is True; expected a whole number"),
        (LargeBatches, {"device": "gpu"}, "device is 'gpu'; expected one of auto, cpu, cuda, mps"),
        (SkipOptions, {"max_bad": 1.0}, "max_bad is 1.0; expected a fraction, at least 0 and less than 1"),
        (DrawOptions, {"fractions": (0.5, 1.5)}, "fractions contains 1.5; expected shares above 0 and up to 1"),
        (DrawOptions, {"fractions": (), "per_class": (0,)}, "per_class contains 0; expected numbers of at least 1"),
        (DrawOptions, {"fractions": ()}, "nothing to label"),
        (DrawOptions, {"fractions": (1.0,), "draws": 0}, "nothing to label"),
        (DrawOptions, {"fractions": (1.0,), "seed": -1}, "seed is -1; expected a whole number of at least 0"),
        (DrawOptions, {"fractions": (1.0,), "validation_fraction": 1.0}, "validation_fraction is 1; expected"),
    ],
)
def test_wrong_values_are_refused(kind: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**values)


def test_the_first_field_that_is_wrong_is_named_with_its_group() -> None:
    options = LargeBatches(extra=-1.0)
    with pytest.raises(UserError, match=r"^inference.extra is -1.0; expected at least 0$"):
        check_fields(options, "inference", batch_size=(True, ""), extra=(options.extra >= 0, "at least 0"))


def test_inherited_fields_have_the_help_of_the_base_class_and_their_own_default() -> None:
    texts = field_texts(LargeBatches)
    assert texts["extra"] == "Further setting."
    assert texts["batch_size"].startswith("Number of samples per forward pass.")
    shown = help_text("prog verb", command, Flags(command), everything=True)
    assert "Number of samples per forward pass." in shown
    assert "[512]" in shown
    assert "Device to run on: auto, cpu, cuda or mps. [auto]" in shown
