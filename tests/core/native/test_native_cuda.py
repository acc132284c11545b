"""The CUDA library without a GPU: it compiles without a warning, loads, its kernels fit, and are checked before use."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive_core.native.build import BuildError, build_cuda
from contrastive_core.native.library import load
from contrastive_core.similarity import native_backend as compiled

STATIC_SHARED = 48 * 1024
SPEAK = """
import ctypes, sys, torch
for path in sys.argv[1:]:
    torch.ops.load_library(path)
for name in ("self_lse", "self_lse_backward", "row_lse", "row_lse_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"contrastive_core_native::{name}", "CUDA"), name
ctypes.CDLL(sys.argv[-1]).contrastive_core_symmetric(True)
"""


@pytest.fixture(scope="module")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build_cuda(tmp_path_factory.mktemp("cuda"), strict=True)
    except BuildError as error:
        if "ended with status" in str(error):
            raise
        pytest.skip(f"no CUDA library: {error}")


@pytest.mark.slow
def test_kernels_fit(cuda_library: Path) -> None:
    """On every architecture: nothing spilled, no stack, shared memory within what needs no asking."""
    triton = pytest.importorskip("triton", reason="its cuobjdump reads the compiled library")
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not cuobjdump.is_file():
        pytest.skip(f"no cuobjdump at {cuobjdump}")
    said = subprocess.run(
        [cuobjdump, "--dump-resource-usage", str(cuda_library)], capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"arch = sm_(\d+)", said)) == {"80", "90", "100", "120"}
    usage = re.findall(r"Function (\S*(?:rows|square)_(?:lse|sums|logs|gradient)\S*):\s+(REG:.+)", said)
    # 4 types; of the rectangular form one forward and two backward kernels, of the square one each, and one without a
    # type; 4 architectures.
    assert len(usage) == (4 * (3 + 2) + 1) * 4
    for name, resources in usage:
        found = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", resources)}
        assert found["STACK"] == found["LOCAL"] == 0, (name, resources)
        assert found["SHARED"] <= STATIC_SHARED + 1024, (name, resources)  # 1 KB is the system's, from sm_90 on
        assert found["REG"] <= (255 if re.search("(gradient|lse|sums)Id", name) else 128), (name, resources)


@pytest.mark.slow
def test_library_needs_no_cuda_runtime_and_registers_its_kernels(cuda_library: Path, native: None) -> None:
    needed = subprocess.run(["readelf", "-d", cuda_library], capture_output=True, text=True, check=False).stdout
    assert "libcudart" not in needed
    command = [sys.executable, "-c", SPEAK, str(load().path), str(cuda_library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_nvcc_or_with_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("contrastive_core.native.build.find_torch", lambda: SimpleNamespace(cuda="13.0", version="9"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(BuildError, match=r"no nvcc found; install the CUDA 13\.0 toolkit and set CUDA_HOME"):
        build_cuda(tmp_path)
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.1'\n")
    nvcc.chmod(0o755)
    with pytest.raises(BuildError, match=r"is release 12\.4, torch was made for CUDA 13\.0; set CUDA_HOME"):
        build_cuda(tmp_path)
    nvcc.write_text("#!/bin/sh\necho 'release 13.0'\n")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;hopper")
    with pytest.raises(BuildError, match="has 'hopper', expected numbers"):
        build_cuda(tmp_path)
    assert shutil.which("nvcc", path=str(nvcc.parent))


@pytest.fixture
def asked_for(native: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CONTRASTIVE_CORE_CUDA=1, and a library of CUDA that stands in for the real one: the kernels of the CPU."""
    monkeypatch.setenv("CONTRASTIVE_CORE_CUDA", "1")
    monkeypatch.setattr(compiled, "load_cuda", lambda **_: load())
    check = compiled._disagreement
    monkeypatch.setattr(compiled, "_disagreement", lambda device: check("cpu"))
    compiled.cuda_is_used.cache_clear()
    yield
    compiled.cuda_is_used.cache_clear()


def test_kernels_that_agree_are_used(asked_for: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled.cuda_is_used()


@pytest.mark.parametrize("operator", ["row_lse", "self_lse", "self_lse_backward", "row_lse_backward"])
def test_kernels_that_disagree_are_not(asked_for: None, monkeypatch: pytest.MonkeyPatch, operator: str) -> None:
    real: Any = torch.ops.contrastive_core_native

    def wrong(*args: Any) -> Tensor | tuple[Tensor, ...]:
        out = getattr(real, operator)(*args)
        return tuple(x * 1.0001 for x in out) if isinstance(out, tuple) else out.masked_fill(out == out[-1], torch.nan)

    names = ("row_lse", "self_lse", "self_lse_backward", "row_lse_backward")
    broken = SimpleNamespace(**{name: wrong if name == operator else getattr(real, name) for name in names})
    monkeypatch.setattr(compiled, "_OPS", broken)
    with pytest.warns(
        UserWarning, match="experimental CUDA kernels are not used: their .* differs from the PyTorch path"
    ):
        assert not compiled.cuda_is_used()


def test_unless_asked_cuda_tensors_take_the_pytorch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTRASTIVE_CORE_CUDA", raising=False)
    compiled.cuda_is_used.cache_clear()
    assert not compiled.cuda_is_used()
    compiled.cuda_is_used.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("symmetric", [False, True])
def test_on_a_device(cuda_library: Path, native: None, symmetric: bool) -> None:
    torch.ops.load_library(cuda_library)
    ctypes.CDLL(str(cuda_library)).contrastive_core_symmetric(ctypes.c_bool(symmetric))
    assert compiled._disagreement("cuda") == ""
