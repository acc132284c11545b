"""Fixtures for all tests: recorded golden values and real data, where they lie beside the checkout."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
# Temporary files of the tests and of the programs that they start and kill; pytest's own folders stay elsewhere.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
SCRATCH = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="contrastive-core-tests-")
tempfile.tempdir = None  # to be read again
# The library of contrastive-core that the tests build (fixture `native`), not one that the user has built. Processes
# of pytest-xdist share the library of the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["CONTRASTIVE_CORE_CACHE"] = str(Path(SCRATCH, "cache"))


def _remove_scratch(*, of: int = os.getpid()) -> None:
    if os.getpid() == of:  # a fork of this process leaves it alone
        shutil.rmtree(SCRATCH, ignore_errors=True)


atexit.register(_remove_scratch)
# Several test processes share the processors, and so do the threads of PyTorch in them and in what they start.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
SHARED = Path(os.environ.get("SSL_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def golden() -> Callable[[str], np.lib.npyio.NpzFile]:
    """`golden("vision")` opens values recorded from the official code, or skips the test and says where it looked."""

    def load(name: str) -> np.lib.npyio.NpzFile:
        path = SHARED / "golden" / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"golden values not found: {path} (set SSL_SHARED to the folder that holds golden/)")
        return np.load(path)

    return load


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data, or skip the test and say where it looked."""
    path = SHARED / "data"
    if not path.is_dir():
        pytest.skip(f"real data not found: {path} (set SSL_SHARED to the folder that holds data/)")
    return path
