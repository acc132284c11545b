"""Train with large contrastive batches in the memory of a small one, by encoding in chunks (GradCache)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from contrastive_core.text import some_of

BatchNorm = Literal["refuse", "chunk"]


def encode_in_chunks(encoder: nn.Module, *inputs: Tensor, chunk_size: int, batch_norm: BatchNorm = "refuse") -> Any:
    """Compute `encoder(*inputs)` and its gradient in the memory of `chunk_size` rows.

    A contrastive loss needs all embeddings of a batch at once, but not all the activations that produced them. The
    encoder therefore processes one chunk at a time and discards its activations. The backward pass first computes the
    gradient of the loss with respect to the embeddings (the gradient cache of the paper), then encodes each chunk again
    and propagates its part of that gradient to the parameters:

        z = encode_in_chunks(encoder, images, chunk_size=64)
        loss = nt_xent(*head(z).chunk(2))
        loss.backward()

    The gradient is exactly that of the whole batch: the chain rule is split in two, and nothing is approximated. Code
    after the embeddings (heads, several losses, a GradScaler, an optimiser) is unchanged and sees the whole batch. The
    second pass repeats the random draws (dropout) and the autocast state of the first, and starts from the same buffers
    (the vectors of spectral norm); only the first pass updates them.

    There is one backward pass, in which each parameter receives its gradient once. With `DistributedDataParallel`,
    inside or outside this function, gradients are averaged over processes once per step and `no_sync` is not needed.

    Activations take O(chunk_size) memory, inputs and embeddings O(N). The second forward pass covers all chunks but the
    last, whose activations are kept; it adds a third to the time of a step if a backward pass costs twice a forward
    pass.

    Args:
        encoder: Module that is called with one chunk of each input and returns a tensor, or a tuple of tensors, with
            one row for each row of the chunk.
        inputs: Tensors [N, ...], split along their rows. They may be on another device than the encoder's parameters
            if the encoder moves each chunk itself.
        chunk_size: Number of rows per call of the encoder. If N is not larger, the encoder is called once.
        batch_norm: "refuse" to raise an error for batch norm in training mode, or "chunk" to normalise each chunk by
            its own statistics (ghost batch norm), which is a different function from normalising the whole batch. Rows
            are then assigned to chunks at random (by torch's global generator, which `manual_seed` seeds): if a chunk
            held both views of the same images, its statistics would reveal which views belong together. Running
            statistics are updated once per chunk.

    Returns:
        A tensor or a tuple of tensors [N, ...], as returned by the encoder.

    Raises:
        TypeError: The encoder is not a module, an input is not a tensor, or an output is neither a tensor nor a tuple
            of tensors.
        ValueError: The encoder has batch norm in training mode (synchronised batch norm included, because the
            statistics of a chunk over all processes also differ from those of the batch); inputs are missing or differ
            in their number of rows; chunk_size is below 1; or an output does not have one row for each row of the
            input.

    Note:
        Without gradient (`torch.no_grad()`), each chunk is encoded once. Draws from generators other than torch's
        global ones (numpy, Python, a `torch.Generator`) are not repeated, so an encoder must not use them. Dropout
        masks are drawn per chunk and differ from those of a single call on the whole batch. Apply `torch.compile` to
        the encoder, not to a function that calls this one.

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
    return _join(outputs, back=None if order is None else order.argsort())


def batch_norms(module: nn.Module) -> list[str]:
    """Return the names of the submodules that normalise by batch statistics, which chunks would change."""
    return [
        name or "the encoder itself"
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None)
    ]


def _encode(encoder: nn.Module, pieces: list[Tensor], *, last: bool) -> tuple[bool, tuple[Tensor, ...]]:
    """Encode a chunk; return whether the output is a tuple, and its tensors.

    Activations are discarded, except those of the last chunk: the backward pass starts there and would recompute them
    immediately.
    """
    if last or not torch.is_grad_enabled():
        output = encoder(*pieces)
    else:
        # The checkpoint saves the generator states of the devices of its arguments: pass a parameter of each device.
        devices = {p.device: p for p in encoder.parameters()}
        first = _FirstPass(encoder)
        output = checkpoint(
            lambda count, *tensors: encoder(*tensors[:count]),
            len(pieces),
            *pieces,
            *devices.values(),
            use_reentrant=False,
            context_fn=lambda: (first, _SecondPass(encoder, first.initial_buffers)),
        )
    parts = output if isinstance(output, tuple) else (output,)
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(
                f"encode_in_chunks: the encoder returned a {type(part).__name__}, expected a tensor or a tuple of "
                "tensors; wrap it in a module that returns only those"
            )
        if part.ndim == 0 or len(part) != len(pieces[0]):
            raise ValueError(
                f"encode_in_chunks: for {len(pieces[0])} rows the encoder returned a tensor {list(part.shape)}, "
                "expected one row for each; compute losses and means over the batch after encode_in_chunks"
            )
    return isinstance(output, tuple), parts


def _rows(x: Tensor, start: int, count: int, order: Tensor | None) -> Tensor:
    return x[start : start + count] if order is None else x[order[start : start + count].to(x.device)]


def _join(outputs: Sequence[tuple[bool, tuple[Tensor, ...]]], *, back: Tensor | None) -> Any:
    whole = tuple(torch.cat(parts) for parts in zip(*(parts for _, parts in outputs), strict=True))
    if back is not None:
        whole = tuple(x[back.to(x.device)] for x in whole)
    return whole if outputs[0][0] else whole[0]


_Buffers = dict[tuple[nn.Module, str], Tensor]


class _FirstPass(AbstractContextManager[None]):
    """Keep copies of the buffers that the block changes, as they were before it, in `initial_buffers`."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.initial_buffers: _Buffers = {}

    def __enter__(self) -> None:
        self._before = [
            (part, name, x, x._version, x.clone())
            for part in self._module.modules()
            for name, x in part._buffers.items()
            if x is not None
        ]

    def __exit__(self, *_: object) -> None:
        for part, name, x, version, copy in self._before:
            if part._buffers.get(name) is not x or x._version != version:
                self.initial_buffers[part, name] = copy
        del self._before


class _SecondPass(AbstractContextManager[None]):
    """Replace a module's buffers by copies of those of the first pass inside the block, which leaves them unchanged.

    The buffers are not copied and restored afterwards, because the first pass may have saved them for backward.
    """

    def __init__(self, module: nn.Module, initial_buffers: _Buffers) -> None:
        self._module, self._initial_buffers = module, initial_buffers

    def __enter__(self) -> None:
        self._original_buffers = [(part, dict(part._buffers)) for part in self._module.modules() if part._buffers]
        copies: dict[int, Tensor] = {}  # one for a buffer that several modules share
        for part, buffers in self._original_buffers:
            for name, x in buffers.items():
                if x is not None:
                    value = self._initial_buffers.get((part, name), x)
                    part._buffers[name] = copies.setdefault(id(x), value.clone())

    def __exit__(self, *_: object) -> None:
        for part, buffers in self._original_buffers:
            part._buffers.update(buffers)


def _check(encoder: nn.Module, inputs: tuple[Tensor, ...], chunk_size: int) -> int:
    """Check the arguments and return the number of rows."""
    if not isinstance(encoder, nn.Module):
        raise TypeError(
            f"encode_in_chunks: the encoder is a {type(encoder).__name__}, expected a torch.nn.Module; wrap a function "
            "in a module, so that its batch norm layers and devices can be inspected"
        )
    for x in inputs:
        if not isinstance(x, Tensor):
            raise TypeError(f"encode_in_chunks: got a {type(x).__name__}, expected tensors [N, ...]")
    if chunk_size < 1:
        raise ValueError(f"encode_in_chunks: chunk_size is {chunk_size}, expected at least 1 row")
    counts = {len(x) if x.ndim else 0 for x in inputs}
    if len(counts) != 1 or counts == {0}:
        shapes = ", ".join(str(list(x.shape)) for x in inputs) or "no inputs"
        raise ValueError(f"encode_in_chunks: got {shapes}, expected tensors with the same number of rows, at least one")
    return counts.pop()


def _refusal(norms: list[str], rows: int, chunk_size: int) -> str:
    return (
        f"encode_in_chunks: batch norm in training mode ({some_of(norms, 3)}) normalises by all {rows} rows of the "
        f"batch, which chunks of {chunk_size} cannot do. Use an encoder without batch norm (group norm, layer norm), "
        "apply a head with batch norm after encode_in_chunks, freeze it with .eval(), or pass "
        'batch_norm="chunk" to normalise each chunk separately'
    )
