"""Keyword arguments of a training command from a flat list of settings."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ssl_medseg.selftraining.options import SelfTrainingOptions
from ssl_medseg.training.recipe import OptimizerOptions, TrainingOptions

_GROUPS: dict[str, type[Any]] = {
    "selftraining": SelfTrainingOptions, "training": TrainingOptions, "optimizer": OptimizerOptions,
}  # fmt: skip
_GROUP_OF = {field.name: group for group, kind in _GROUPS.items() for field in fields(kind)}


def grouped(**values: Any) -> dict[str, Any]:
    """Put each setting into the options that it belongs to: ``steps=3`` into ``training=TrainingOptions(steps=3)``."""
    inside: dict[str, dict[str, Any]] = {}
    rest: dict[str, Any] = {}
    for name, value in values.items():
        if name in _GROUP_OF:
            inside.setdefault(_GROUP_OF[name], {})[name] = value
        else:
            rest[name] = value
    return rest | {group: _GROUPS[group](**given) for group, given in inside.items()}
