"""Triton kernels: right in Triton's interpreter, compiled for a GPU that is not there, used only where measured."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_core import nt_xent, suncet
from contrastive_core.similarity import self_lse, tensor_cores, torch_backend, use_backend
from contrastive_core.similarity.torch_backend import Candidates


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    pytest.importorskip("triton", reason="comes with PyTorch for CUDA on Linux")
    command = [sys.executable, "-m", "tests.core.similarity.tensor_cores_worker"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_values_and_gradients_are_those_of_the_full_matrix(interpreted: dict[str, Any]) -> None:
    for case in interpreted["cases"]:
        # Of 11 bits; of two parts of them as of float32.
        assert case["value"] < (3e-3 if case["half"] else 3e-6), case
        assert max(case["gradients"]) < (1e-3 if case["half"] else 1e-6), case
        assert case["shapes"] == case["expected"], case


def test_rows_without_candidates_give_minus_infinity(interpreted: dict[str, Any]) -> None:
    assert interpreted["alone"] == [-float("inf")] * 2


def test_the_check_before_first_use_is_passed(interpreted: dict[str, Any]) -> None:
    assert interpreted["check"] == ""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device that reports compute capability 9, as far as the choice of kernels looks."""
    pytest.importorskip("triton")
    monkeypatch.delenv(tensor_cores.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(tensor_cores, "self_check", lambda device: "")
    tensor_cores.in_use.cache_clear()
    yield
    tensor_cores.in_use.cache_clear()


@pytest.mark.parametrize(
    ("major", "wanted", "used"),
    [(9, "auto", True), (9, "0", False), (8, "auto", False), (8, "1", True), (10, "auto", False), (7, "1", False)],
)
def test_they_are_used_where_they_were_measured_or_asked_for(
    cuda: None, monkeypatch: pytest.MonkeyPatch, major: int, wanted: str, used: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    monkeypatch.setenv(tensor_cores.VARIABLE, wanted)
    assert tensor_cores.in_use(0) == used


def test_kernels_that_fail_or_disagree_are_not_used(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_cores, "self_check", lambda device: "CompilationError: no C compiler")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    with pytest.warns(UserWarning, match=r"a card use PyTorch tiles, .*: CompilationError: no C compiler\. "):
        assert not tensor_cores.in_use(0)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_the_check_notices_wrong_results(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    def result(problem: tensor_cores.Problem, gradient: Tensor, number: int) -> Tensor:
        return tensor_cores._full_matrix(problem, gradient)[number] * (1.003 if number == wrong else 1.0)

    monkeypatch.setattr(tensor_cores, "forward", lambda p: result(p, torch.ones(300, dtype=torch.float64), 0))
    monkeypatch.setattr(tensor_cores, "backward", lambda p, g, lse: (result(p, g, 1), result(p, g, 2)))
    name = ("log-sum-exp", "gradient of the queries", "gradient of the keys")[wrong]
    assert tensor_cores.self_check(torch.device("cpu")) == f"their {name} differs from the full matrix"


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"rows": 512}, False),
        ({"dtype": torch.float64}, False),
        ({"max_norm": 2.1}, False),
        ({"same": True}, False),
        ({"device": "cpu"}, False),
    ],
)
def test_only_large_bounded_matrices_are_taken(cuda: None, change: dict[str, Any], taken: bool) -> None:
    given = {"rows": 1024, "dtype": torch.float32, "max_norm": 2.0, "same": None, "device": "cuda"} | change
    classes = torch.zeros(1024, dtype=torch.int64)

    class Rows:
        """What is asked of a tensor."""

        dtype = given["dtype"]
        device = torch.device(given["device"], 0) if given["device"] == "cuda" else torch.device("cpu")

        def __len__(self) -> int:
            return int(given["rows"])

    candidates = Candidates((0,), None if given["same"] is None else (classes, classes), same=bool(given["same"]))
    z: Any = Rows()
    assert torch_backend._on_tensor_cores(z, z, candidates, 10.0, given["max_norm"]) == taken


@pytest.mark.slow
def test_kernels_fit_the_processor() -> None:
    """Compiled for compute capability 9.0: they use tensor cores and the copy engine, and spill nothing."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from contrastive_core.similarity import tensor_core_kernels as kernels

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tile, depth = tensor_cores._TILE, tensor_cores._DEPTH
    types = {"q": f"tensordesc<fp16[{tile},{depth}]>", "high": f"tensordesc<fp16[{tile},{tile}]>", "factor": "fp32"}
    types |= {"k": types["q"], "low": types["high"], "across": "*fp32", "down": "*fp32", "weight": "*fp32"}
    types |= {"q_classes": "*i32", "k_classes": "*i32"}
    constants = {"SYMMETRIC": True, "HAS_LOW": True, "HAS_CLASSES": True, "HEIGHT": tile, "WIDTH": tile, "DEPTH": depth}
    for kernel in (kernels.sum_tiles, kernels.weigh_tiles):
        chosen = {name: constants[name] for name in kernel.arg_names if name in constants}
        signature = {name: "constexpr" if name in chosen else types.get(name, "i32") for name in kernel.arg_names}
        source = ASTSource(kernel, signature, chosen)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=tensor_cores._LAUNCH)
        assert "wgmma.mma_async" in made.asm["ptx"]
        assert "cp.async.bulk.tensor" in made.asm["ptx"]
        if cuobjdump.is_file():
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                Path(file.name).write_bytes(made.asm["cubin"])
                command = [cuobjdump, "--dump-resource-usage", file.name]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert "STACK:0" in said
            assert "LOCAL:0" in said


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "d"), [(512, 128), (2000, 70), (3000, 768)])
def test_losses_on_a_device(n: int, d: int, dtype: torch.dtype) -> None:
    if not tensor_cores.in_use(0):
        pytest.skip(f"not used on {torch.cuda.get_device_name(0)}")
    generator = torch.Generator().manual_seed(n)
    a = torch.randn(n, d, generator=generator)
    b = (a + torch.randn(n, d, generator=generator)).cuda().to(dtype)
    a = a.cuda().to(dtype)
    labels = torch.randint(0, 20, (2 * n,), generator=generator).cuda()
    for loss in (
        lambda x, y: nt_xent(x, y, temperature=0.1),
        lambda x, y: nt_xent(x, y, y.detach().flip(0), temperature=0.2),
        lambda x, y: suncet(torch.cat([x, y]), labels),
    ):
        x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
        value = loss(x, y)
        # Times the rows, or a float16 gradient would be too small for its type.
        found = torch.autograd.grad(value * n, (x, y))
        u, v = a.double().requires_grad_(), b.double().requires_grad_()
        with use_backend("reference"):
            exact = loss(u, v)
        slopes = torch.autograd.grad(exact * n, (u, v))
        assert value.item() == pytest.approx(exact.item(), rel=1e-6 if dtype == torch.float32 else 1e-4)
        for mine, slope in zip(found, slopes, strict=True):
            error = ((mine.double() - slope).norm() / slope.norm()).item()
            assert error < {torch.float32: 2e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype]


@pytest.mark.gpu
@gpu
def test_no_wait_for_the_device() -> None:
    """Once the kernels are compiled, a call neither reads a number back nor waits."""
    z = F.normalize(torch.randn(4096, 128, device="cuda")).requires_grad_()

    def call() -> None:
        self_lse(z, scale=10.0, skip=2048, max_norm=1.0).sum().backward()

    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
