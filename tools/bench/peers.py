"""Imports the peers of `tools/bench/losses.py` that are installed, once for all cells."""

import contextlib
import importlib

import contrastive_core.losses  # noqa: F401 - its operators are defined once, too

for name in ("lightly.loss", "pytorch_metric_learning.losses"):
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(name)
