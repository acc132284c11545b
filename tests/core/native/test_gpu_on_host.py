"""The bodies of the CUDA kernels, run on the CPU thread by thread: right at ragged sizes in every order of the threads,
and wrong as soon as a barrier or a guard is missing.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_core.native.build import SOURCES
from contrastive_core.similarity import row_lse, self_lse, use_backend

#: Lines of rectangle.cuh from 1 on, those of square.cuh from 1001 on.
LINES = {
    first + number: line
    for first, name in ((1, "rectangle.cuh"), (1001, "square.cuh"))
    for number, line in enumerate((SOURCES / name).read_text().splitlines())
}
ORDERS = ("forward", "reverse", "shuffled")
#: Lines with a barrier or a guard.
MARKED = [
    number
    for number, line in LINES.items()
    if (line.strip().startswith("__syncthreads()") or "GUARD(" in line) and not line.startswith(("#", "//"))
]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (c++, g++) to run the kernels on the CPU")
    made = tmp_path_factory.mktemp("gpu") / "gpu_on_host"
    source = Path(__file__).with_name("gpu_on_host.cpp")
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, f"-I{SOURCES}", str(source), "-o", str(made)], check=True)
    return made


@dataclass
class Case:
    """A problem, and how to give it to the program; without keys the square form."""

    queries: int
    keys: int
    depth: int
    scale: float = 10.0
    omit: int | None = None
    among: str = "all"

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.queries)
        self.q, self.k = (
            F.normalize(torch.randn(n, self.depth, generator=generator, dtype=torch.float64))
            for n in (self.queries, self.keys)
        )
        self.gradient = torch.rand(self.queries, generator=generator, dtype=torch.float64) + 0.1
        self.labels, self.others = (
            torch.randint(0, 5, (n,), generator=generator).sort().values for n in (self.queries, self.keys)
        )

    def exact(self) -> Tensor:
        """Value and both gradients, with the full matrix."""
        q, k = self.q.clone().requires_grad_(), self.k.clone().requires_grad_()
        k.grad = torch.zeros_like(k)
        among = None if self.among == "all" else (self.labels, self.others)
        with use_backend("reference"):
            if self.keys:
                lse = row_lse(q, k, scale=self.scale, self_offset=self.omit, classes=among, among=self.among)
            else:
                lse = self_lse(q, scale=self.scale, skip=self.omit, classes=among and among[0], among=self.among)
        (torch.where(lse.isfinite(), lse, 0.0) * self.gradient).sum().backward()
        return torch.cat([lse.detach(), q.grad.flatten(), k.grad.flatten()])

    def run(self, program: Path, order: str, *, without: int = 0, dtype: str = "double") -> tuple[int, float]:
        """Exit status, and error relative to the full matrix."""
        same = {"all": -1, "other": 0, "same": 1}[self.among]
        omit = "none" if self.omit is None else self.omit
        words = [order, without, dtype, self.queries, self.keys, self.depth, self.scale, omit, same]
        arrays = [self.q, self.k, self.gradient, *([self.labels, self.others] if same >= 0 else [])]
        numbers = "\n".join(f"{x:.17g}" for array in arrays for x in array.flatten().tolist())
        done = subprocess.run([program, *map(str, words)], input=numbers, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 4):
            return done.returncode, float("inf")
        found, exact = torch.tensor([float(x) for x in done.stdout.split()], dtype=torch.float64), self.exact()
        finite = exact.isfinite()
        if not torch.equal(found[~finite], exact[~finite]):
            return done.returncode, float("inf")
        return done.returncode, (found - exact)[finite].norm().item() / (exact[finite].norm().item() or 1.0)


CASES = [
    Case(70, 100, 35, omit=3),
    Case(64, 64, 16),
    Case(1, 130, 5, scale=700.0),
    Case(65, 1, 17, omit=-64),
    Case(130, 63, 70, scale=0.1),
    Case(70, 100, 35, among="same"),
    Case(70, 100, 35, among="other"),
    Case(70, 0, 35, omit=35),
    Case(64, 0, 16),
    Case(1, 0, 5),
    Case(130, 0, 70, scale=0.1),
    Case(200, 0, 20, scale=39.0),
    Case(150, 0, 35, among="same"),
    Case(150, 0, 35, among="other"),
]
SQUARE = next(n for n, case in enumerate(CASES) if not case.keys)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_right_in_every_order(program: Path, case: Case, order: str) -> None:
    for dtype, limit in (("double", 1e-13), ("float", 2e-6 if case.scale <= 40 else 2e-4)):
        status, error = case.run(program, order, dtype=dtype)
        assert status == 0
        assert error < limit, dtype


@pytest.mark.parametrize("line", MARKED)
def test_a_missing_barrier_or_guard_is_noticed(program: Path, line: int) -> None:
    for case in (CASES[0], CASES[5], CASES[SQUARE], CASES[SQUARE + 5]):
        for order in ORDERS:
            status, error = case.run(program, order, without=line)
            if status != 0 or not error < 1e-6:
                return
    pytest.fail(f"the kernels do without line {line}: {LINES[line].strip()}")


def test_every_kind_of_line_is_tried() -> None:
    barriers = [n for n in MARKED if "__syncthreads" in LINES[n]]
    assert len(barriers) == sum(line.count("__syncthreads()") for line in LINES.values()) == 8
    assert len(MARKED) - len(barriers) == 7 + 6
