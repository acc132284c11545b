"""Measure one cell of `tools/bench/losses.py`: time and memory of one loss at one size, in a separate process.

Every method does the same work: normalisation, value, and gradient with respect to both views. The plain matrix
products are a lower limit. Extra memory is the largest resident size during the first call minus the size before it; on
CUDA, it is the peak of the allocator minus the memory allocated before.
"""

from __future__ import annotations

import re
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.1
WARM_UP_ROWS = {"cpu": 64, "cuda": 2048}
PEAK_SIDE = {"cpu": 2048, "cuda": 8192}
COPIED = 1 << 28  # bytes
TILE = 1024
SHORT_SECONDS = 0.3

Loss = Callable[[Tensor, Tensor], Tensor]


def nt_xent() -> Loss:
    from contrastive_core import nt_xent as loss

    return lambda a, b: loss(a, b, temperature=TEMPERATURE)


def nt_xent_torch() -> Loss:
    """Return NT-Xent without the compiled library and without the kernels for tensor cores."""
    from contrastive_core.similarity import tensor_cores, use_backend

    ours = nt_xent()

    def loss(a: Tensor, b: Tensor) -> Tensor:
        with use_backend("torch"), mock.patch.object(tensor_cores, "in_use", return_value=False):
            value = ours(a, b)
            # The backward pass selects the implementation again.
            if value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
            return value.detach()

    return loss


def full_matrix() -> Loss:
    """Return NT-Xent as in a paper's pseudo-code: cross-entropy over all similarities except the diagonal."""

    def loss(a: Tensor, b: Tensor) -> Tensor:
        z = F.normalize(torch.cat([a, b]), dim=1)
        logits = ((z @ z.T).float() / TEMPERATURE).fill_diagonal_(-torch.inf)
        return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(a)))

    return loss


def full_matrix_compiled() -> Loss:
    """Return `full_matrix` compiled by torch.compile."""
    loss: Loss = torch.compile(full_matrix())
    return loss


def lightly() -> Loss:
    from lightly.loss import NTXentLoss

    loss: Loss = NTXentLoss(temperature=TEMPERATURE)
    return loss


def pml_nt_xent() -> Loss:
    from pytorch_metric_learning.losses import NTXentLoss

    loss = NTXentLoss(temperature=TEMPERATURE)
    return lambda a, b: loss(torch.cat([a, b]), torch.arange(len(a), device=a.device).repeat(2))


def pml_supcon() -> Loss:
    from pytorch_metric_learning.losses import SupConLoss

    loss = SupConLoss(temperature=TEMPERATURE)
    return lambda a, b: loss(torch.cat([a, b]), torch.arange(len(a), device=a.device).repeat(2))


def gemms(count: int) -> Callable[[], Loss]:
    """Return `count` products [N, D] x [D, N] in tiles that fit into the cache, without any other work."""

    def work(a: Tensor, b: Tensor) -> Tensor:
        z = torch.cat([a, b]).detach()
        tile = min(TILE, len(z))
        out = z.new_empty(tile, tile)
        for _ in range(count):
            for rows in torch.split(z, tile):
                for columns in torch.split(z, tile):
                    torch.mm(rows, columns.T, out=out[: len(rows), : len(columns)])
        return out

    return lambda: work


METHODS: dict[str, Callable[[], Loss]] = {
    "nt_xent": nt_xent,
    "nt_xent_torch": nt_xent_torch,
    "gemm2": gemms(2),
    "gemm3": gemms(3),
    "full_matrix": full_matrix,
    "full_matrix_compiled": full_matrix_compiled,
    "lightly": lightly,
    "pml_supcon": pml_supcon,
    "pml_nt_xent": pml_nt_xent,
}


def views(rows: int, dim: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Draw two correlated views of rows / 2 samples."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(rows // 2, dim, generator=generator)
    b = a + 2 * torch.randn(rows // 2, dim, generator=generator)
    return a.to(device, dtype).requires_grad_(), b.to(device, dtype).requires_grad_()


def peak_flops(dtype: torch.dtype, device: str, threads: int) -> float:
    """Measure operations per second of a plain product of square matrices of this type with float32 sums.

    On the CPU, the result is the best of several calls, because other programs may run, and that of the faster of the
    two libraries in torch.
    """
    torch.set_num_threads(threads)
    side = PEAK_SIDE[device]
    a, b = torch.randn(2, side, side, device=device).to(dtype).unbind()
    products: list[Callable[[], Tensor]] = [lambda: torch.mm(a, b)]
    if device == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    rates = []
    with torch.no_grad():
        for product in products:
            product()
            wall, cpu = _times(product, device, 10, 1.0)
            seconds = min(cpu if cpu and threads == 1 else wall) if device == "cpu" else statistics.median(wall)
            rates.append(2 * side**3 / seconds)
    return max(rates)


def peak_bytes(device: str, threads: int) -> float:
    """Measure bytes read and written per second by a copy that is larger than the caches."""
    torch.set_num_threads(threads)
    source = torch.zeros(COPIED // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)  # the first copy allocates pages
    wall, cpu = _times(lambda: target.copy_(source), device, 10, 3.0)
    return 2 * COPIED / min(cpu if cpu and threads == 1 else wall)


def call(loss: Loss, a: Tensor, b: Tensor) -> Tensor:
    a.grad = b.grad = None
    value = loss(a, b)
    if value.requires_grad:
        value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def measure(
    method: str,
    rows: int,
    dim: int,
    *,
    threads: int,
    device: str,
    dtype: str,
    repeats: int,
    seconds: float,
    long: float,
    limit_mb: float,
) -> dict[str, object]:
    """Measure times, extra memory and result of one method.

    Memory is measured in the first call, and so is time if that call takes longer than `long` seconds. The result is
    {"skipped": reason} if the method is not installed or does not fit into memory.
    """
    torch.set_num_threads(threads)
    try:
        loss = METHODS[method]()
    except ModuleNotFoundError as missing:
        return {"skipped": f"{missing.name} is not installed"}
    # Exclude what is loaded on first use.
    call(loss, *views(WARM_UP_ROWS[device], dim, device, getattr(torch, dtype)))
    a, b = views(rows, dim, device, getattr(torch, dtype))
    memory = _CudaMemory() if device == "cuda" else _HostMemory()
    memory.limit(limit_mb)
    try:
        values: list[Tensor] = []
        wall, cpu = _times(lambda: values.append(call(loss, a, b)), device, 1, 0.0)
        extra_mb = memory.peak_extra_mb()
        if wall[0] <= long:
            wall, cpu = _times(lambda: call(loss, a, b), device, repeats, seconds)
    except (RuntimeError, MemoryError) as error:
        if re.search(r"can't allocate memory|not enough memory|out of memory", f"{error}") or isinstance(
            error, MemoryError
        ):
            return {"skipped": f"needs more than {limit_mb / 1024:.1f} GB"}
        raise
    result: dict[str, object] = {
        "wall_s": statistics.median(wall),
        "wall_min_s": min(wall),
        "extra_mb": extra_mb,
        "repeats": len(wall),
    }
    if cpu:
        result |= {"cpu_s": statistics.median(cpu), "cpu_min_s": min(cpu)}
    if a.grad is not None and b.grad is not None:
        result |= {"loss": values[0].item(), "gradient_norm": torch.cat([a.grad, b.grad]).norm().item()}
    return result


def _times(run: Callable[[], object], device: str, repeats: int, seconds: float) -> tuple[list[float], list[float]]:
    """Measure wall and CPU seconds of `repeats` runs, of more if they are short, and of fewer after `seconds` in total.

    On CUDA, measure the device time between two events, and no CPU seconds.
    """
    wall: list[float] = []
    cpu: list[float] = []
    while not wall or (sum(wall) < seconds and (len(wall) < repeats or sum(wall) < SHORT_SECONDS)):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            run()
            end.record()
            end.synchronize()
            wall.append(start.elapsed_time(end) / 1000)
        else:
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            run()
            cpu.append(time.process_time() - cpu_start)
            wall.append(time.perf_counter() - wall_start)
    return wall, cpu


class _HostMemory:
    """Peak resident size of this process since construction."""

    def __init__(self) -> None:
        refs = Path("/proc/self/clear_refs")
        if refs.exists():
            refs.write_text("5")  # resets the peak, which includes the imports
        self.before = self._peak_mb()

    def limit(self, mb: float) -> None:
        """Limit the memory, so that an allocation fails instead of making the machine swap or kill the process."""
        status = Path("/proc/self/status")
        if status.exists():
            data_mb = int(re.findall(r"VmData:\s+(\d+)", status.read_text())[0]) / 1024
            most = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (int((data_mb + mb) * 2**20), most))

    def peak_extra_mb(self) -> float:
        return self._peak_mb() - self.before

    def _peak_mb(self) -> float:
        status = Path("/proc/self/status")
        if status.exists():
            return int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes


class _CudaMemory:
    """Peak of torch's allocator since construction."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def limit(self, mb: float) -> None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (self.before + mb * 2**20) / total))

    def peak_extra_mb(self) -> float:
        return (torch.cuda.max_memory_allocated() - self.before) / 2**20
