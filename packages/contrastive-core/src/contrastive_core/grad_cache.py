"""A large contrastive batch in the memory of a small one (GradCache): the encoder sees it in chunks, twice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

BatchNorm = Literal["refuse", "chunk"]


def encode_in_chunks(encoder: nn.Module, *inputs: Tensor, chunk_size: int, batch_norm: BatchNorm = "refuse") -> Any:
    """What `encoder(*inputs)` gives, value and gradient, in the memory of `chunk_size` rows.

    A contrastive loss needs all embeddings of a batch at once, but not all activations behind them. So the encoder is
    given a chunk at a time and its activations are dropped; the loss of all embeddings is differentiated down to the
    embeddings (the gradient cache of the paper); then chunk by chunk is encoded again and differentiated from there:

        z = encode_in_chunks(encoder, images, chunk_size=64)
        loss = nt_xent(*head(z).chunk(2))
        loss.backward()

    The gradient is that of the whole batch: the chain rule is cut in two, nothing is approximated. Whatever comes after
    the embeddings (heads, several losses, a GradScaler, an optimiser) stays as it is and sees the whole batch. Random
    draws (dropout) and autocast are as in the first pass the second time; buffers change in the first pass only.

    There is one backward pass and in it every parameter gets its gradient once: inside `DistributedDataParallel` or
    around it, gradients are averaged over processes once a step, without `no_sync`.

    Memory O(chunk) for activations and O(N) for inputs and embeddings. Time: one more forward pass of all chunks but
    the last, whose activations are kept; a third more where a backward pass costs twice a forward pass.

    Args:
        encoder: called with one piece of each input; returns a tensor, or a tuple of tensors, with a row for each row
            of the piece.
        inputs: [N, ...] each, cut along their rows. They may lie elsewhere than the encoder, which then moves a piece.
        chunk_size: rows the encoder sees at a time. With N or fewer rows it sees all of them, once.
        batch_norm: `refuse`, or `chunk` to normalise every chunk by its own statistics (ghost batch norm), which is
            another function than that of the whole batch. Rows are then put into chunks at random (by torch's global
            generator, which `manual_seed` seeds), for where both views of the same images made a chunk, its statistics
            would tell which views belong together. Running statistics take one update per chunk.

    Returns:
        A tensor or a tuple of tensors [N, ...], as the encoder does.

    Edges: without gradient (`torch.no_grad()`), chunks are encoded once. Draws from generators other than torch's
    global ones (numpy, Python, a `torch.Generator`) are not repeated: an encoder must not draw from those. Dropout
    draws chunk by chunk, so its masks are not those that one call on the whole batch would draw. `torch.compile` takes
    the encoder, not a function that calls this one.

    Raises:
        TypeError: encoder is no module, an input no tensor, an output neither tensor nor tuple of tensors.
        ValueError: batch norm in training mode (synchronised or not: the statistics of a chunk over processes are not
            those of the batch either); inputs with different numbers of rows or none; chunk_size below 1; an output
            that has not a row for each row of the input.

    Reference: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", section 3.

    >>> encoder = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
    >>> encode_in_chunks(encoder, torch.randn(10, 3), chunk_size=4).shape
    torch.Size([10, 4])
    """
    rows = _check(encoder, inputs, chunk_size)
    if rows <= chunk_size:
        return encoder(*inputs)
    norms = batch_norms(encoder)
    if norms and batch_norm != "chunk":
        raise ValueError(_refusal(norms, rows, chunk_size))
    order = torch.randperm(rows) if norms else None
    outputs = [
        _encode(encoder, [_rows(x, start, chunk_size, order) for x in inputs], last=start + chunk_size >= rows)
        for start in range(0, rows, chunk_size)
    ]
    return _joined(outputs, back=None if order is None else order.argsort())


def batch_norms(module: nn.Module) -> list[str]:
    """Names of the parts that normalise by the statistics of the batch they see, which chunks would change."""
    return [
        name or "the encoder itself"
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None)
    ]


def _encode(encoder: nn.Module, pieces: list[Tensor], *, last: bool) -> tuple[bool, tuple[Tensor, ...]]:
    """Whether the encoder returns a tuple, and its tensors; without activations unless it is the last chunk.

    The backward pass begins with the last chunk, so that its activations would be made again at once.
    """
    if last or not torch.is_grad_enabled():
        output = encoder(*pieces)
    else:
        # What lies on the encoder's devices tells the checkpoint whose generators to remember.
        devices = {p.device: p for p in encoder.parameters()}
        output = checkpoint(
            lambda count, *tensors: encoder(*tensors[:count]),
            len(pieces),
            *pieces,
            *devices.values(),
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _Unchanged(encoder)),
        )
    parts = output if isinstance(output, tuple) else (output,)
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(
                f"encode_in_chunks: the encoder returned a {type(part).__name__}, expected a tensor or a tuple of "
                "tensors; wrap it in a module that picks them"
            )
        if part.ndim == 0 or len(part) != len(pieces[0]):
            raise ValueError(
                f"encode_in_chunks: for {len(pieces[0])} rows the encoder returned a tensor {list(part.shape)}, "
                "expected a row for each; losses and means over the batch come after encode_in_chunks"
            )
    return isinstance(output, tuple), parts


def _rows(x: Tensor, start: int, count: int, order: Tensor | None) -> Tensor:
    return x[start : start + count] if order is None else x[order[start : start + count].to(x.device)]


def _joined(outputs: Sequence[tuple[bool, tuple[Tensor, ...]]], *, back: Tensor | None) -> Any:
    whole = tuple(torch.cat(parts) for parts in zip(*(parts for _, parts in outputs), strict=True))
    if back is not None:
        whole = tuple(x[back.to(x.device)] for x in whole)
    return whole if outputs[0][0] else whole[0]


class _Unchanged(AbstractContextManager[None]):
    """Inside, the module's buffers are copies: what a second pass adds to running statistics is dropped.

    Copies rather than copying back, because the first pass may have saved the buffers themselves for backward.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __enter__(self) -> None:
        self._kept = [(part, dict(part._buffers)) for part in self._module.modules() if part._buffers]
        for part, buffers in self._kept:
            part._buffers.update({name: None if x is None else x.clone() for name, x in buffers.items()})

    def __exit__(self, *_: object) -> None:
        for part, buffers in self._kept:
            part._buffers.update(buffers)


def _check(encoder: nn.Module, inputs: tuple[Tensor, ...], chunk_size: int) -> int:
    """The number of rows."""
    if not isinstance(encoder, nn.Module):
        raise TypeError(
            f"encode_in_chunks: the encoder is a {type(encoder).__name__}, expected a torch.nn.Module, in which batch "
            "norm and the device can be found; wrap functions in a module"
        )
    for x in inputs:
        if not isinstance(x, Tensor):
            raise TypeError(f"encode_in_chunks: got a {type(x).__name__}, expected tensors [N, ...]")
    if chunk_size < 1:
        raise ValueError(f"encode_in_chunks: chunk_size is {chunk_size}, expected at least 1 row")
    counts = {len(x) if x.ndim else 0 for x in inputs}
    if len(counts) != 1 or counts == {0}:
        found = ", ".join(str(list(x.shape)) for x in inputs) or "no inputs"
        raise ValueError(f"encode_in_chunks: got {found}, expected tensors with equally many rows, at least one")
    return counts.pop()


def _refusal(norms: list[str], rows: int, chunk_size: int) -> str:
    shown = ", ".join(norms[:3]) + (f" and {len(norms) - 3} more" if len(norms) > 3 else "")
    return (
        f"encode_in_chunks: batch norm in training mode ({shown}) normalises by all {rows} rows of the batch, which "
        f"chunks of {chunk_size} cannot give it. Use an encoder without batch norm (group norm, layer norm), leave a "
        'head that has it out of the chunks, freeze it with .eval(), or pass batch_norm="chunk" to normalise every '
        "chunk by itself"
    )
