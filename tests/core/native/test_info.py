"""`info()` and `python -m contrastive_core`, run as a user runs it."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys

import pytest
import torch

import contrastive_core
from contrastive_core.similarity import tensor_cores, use_backend


def test_info_is_what_runs() -> None:
    with use_backend("auto"):
        found = contrastive_core.info()
    assert found.version == contrastive_core.__version__
    assert found.backend == ("torch" if found.unavailable else "native")
    assert bool(found.library) != ("native" in found.unavailable)
    assert found.torch == torch.__version__
    assert found.devices[0] == "cpu"
    assert found.threads == torch.get_num_threads()
    assert found.cuda == "no device" or found.cuda.startswith(("PyTorch tiles", "Triton kernels"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.backend = "other"  # type: ignore[misc]
    with use_backend("reference"):
        assert contrastive_core.info().backend == "reference"


def test_it_says_what_computes_on_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(tensor_cores, "in_use", lambda device: False)
    assert contrastive_core.info().cuda == "PyTorch tiles; CONTRASTIVE_CORE_TENSOR_CORES=1 tries the Triton kernels"
    monkeypatch.setattr(tensor_cores, "in_use", lambda device: True)
    assert contrastive_core.info().cuda == "Triton kernels for tensor cores; PyTorch tiles for small batches"


def test_command_prints_it_and_the_environment_chooses() -> None:
    command = [sys.executable, "-m", "contrastive_core"]
    environment = {**os.environ, "CONTRASTIVE_CORE_BACKEND": "reference"}
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == f"contrastive-core {contrastive_core.__version__}"
    assert lines[1].split() == ["backend", "reference"]
    # The compiled library: where it is, or why it is not.
    assert re.match(
        r"library   AVX|          native: it has not been built; run `python -m contrastive_core build`", lines[2]
    )
    assert lines[3].split() == ["torch", torch.__version__]


def test_importing_the_losses_does_not_load_the_compiler() -> None:
    """torch._dynamo alone takes longer to import than the whole package."""
    code = "import sys, contrastive_core.losses; print('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
