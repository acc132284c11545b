"""Import the libraries that `tools/bench/losses.py` compares, if they are installed, once for all cells."""

import contextlib
import importlib

import contrastive_core.losses  # noqa: F401 - also defines its operators only once

for name in ("lightly.loss", "pytorch_metric_learning.losses"):
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module(name)
