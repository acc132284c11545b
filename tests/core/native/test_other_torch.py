"""An environment with another torch: a wheel built here, one built without torch, and compilation there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from contrastive_core.native.build import BuildError, find_torch
from tests.core.native.test_native_build import PACKAGE, wheel

OTHER = os.environ.get("CONTRASTIVE_CORE_OTHER_TORCH", "2.13.0+cpu")
USE = """
import sys, torch, contrastive_core
from contrastive_core import info_nce, nt_xent, suncet, supcon
from contrastive_core.similarity import use_backend
assert torch.__version__ == sys.argv[1], torch.__version__
z, y = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)), torch.arange(300) % 7
losses = {
    "nt_xent": lambda z: nt_xent(z[:150], z[150:]),
    "in float64": lambda z: nt_xent(z[:150], z[150:], temperature=0.01),
    "info_nce": lambda z: info_nce(z[:150], z[150:], z[:50].detach()),
    "suncet": lambda z: suncet(z, y),
    "supcon": lambda z: supcon(z, y),
}
for name, loss in losses.items():
    found = []
    for backend in ("auto", "reference"):
        with use_backend(backend):
            for f in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
                x = z.clone().requires_grad_()
                value = f(x)
                value.backward()
                found.append((value.detach(), x.grad))
    for value, gradient in found:
        assert abs(value - found[-1][0]) <= 2e-6 * found[-1][0], name
        assert (gradient - found[-1][1]).norm() <= 2e-6 * found[-1][1].norm(), name
print(contrastive_core.info())
"""


class Environment:
    """A Python environment and what is installed in it."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        self.folder, self.cache = folder, folder / "cache"

    def run(self, *words: str) -> str:
        hidden = ("PYTHONPATH", "VIRTUAL_ENV", "CONTRASTIVE_CORE_EXT", "CONTRASTIVE_CORE_BACKEND")
        clean = {name: value for name, value in os.environ.items() if name not in hidden}
        done = subprocess.run(
            [self.folder / "bin" / "python", *words], cwd=self.folder, capture_output=True, text=True, check=False,
            env={**clean, "CONTRASTIVE_CORE_CACHE": str(self.cache)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *words: str) -> None:
        self.run("-m", "pip", "install", "-q", *words)

    def replace(self, what: Path) -> None:
        self.install("--force-reinstall", "--no-deps", str(what))


@pytest.mark.slow
def test_with_another_torch(tmp_path: Path) -> None:
    try:
        if find_torch().version == OTHER:
            pytest.skip(f"torch {OTHER} is the installed one")
    except BuildError as error:
        pytest.skip(str(error))
    there = Environment(tmp_path / "environment")
    try:
        there.install(f"torch=={OTHER}")
    except AssertionError as error:
        pytest.skip(f"pip has no torch {OTHER}: {error}")

    ignore = shutil.ignore_patterns("__pycache__", "_lib", ".*")
    checkout = Path(shutil.copytree(PACKAGE, tmp_path / "package", ignore=ignore))
    done = wheel(checkout, CONTRASTIVE_CORE_EXT="cpu")
    if "no C++ compiler" in done.stderr or "native backend supports Linux" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    (built,) = (checkout / "dist").iterdir()
    there.replace(built)
    found = there.run("-c", USE, OTHER)
    assert "backend   native" in found
    assert "/site-packages/contrastive_core/native/_lib/" in found

    # pip builds it where there is no torch.
    there.replace(checkout)
    found = there.run("-c", USE, OTHER)
    assert "backend   torch" in found
    assert "native: it has not been built; run `python -m contrastive_core build`" in found

    there.run("-m", "contrastive_core", "build")
    found = there.run("-c", USE, OTHER)
    assert "backend   native" in found
    assert str(there.cache) in found
