"""Triton kernels of `tensor_cores`, which compute, sum and weight tiles of exponentials of similarities."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: PLR0917 - arguments of kernels are positional
# Triton resolves every annotation and supports only `constexpr`.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exponentials(
    q,
    k,
    row,
    column,
    rows,
    columns,
    first_left_out,
    second_left_out,
    third_left_out,
    q_classes,
    k_classes,
    factor,
    depth,
    HAS_CLASSES: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Compute exp2(factor * q k^T) of a tile [HEIGHT, WIDTH], with 0 for excluded entries.

    The excluded entries are those beyond the last column, those on three diagonals (column - row) and, with classes,
    those whose row and column belong to the same class or whose row or column has a negative class number.
    """
    s = tl.zeros((HEIGHT, WIDTH), tl.float32)
    for start in range(0, depth, DEPTH):
        s = tl.dot(q.load([row, start]), k.load([column, start]).T, s)
    s *= factor
    lowest = column - row - HEIGHT
    highest = column - row + WIDTH
    cut = column + WIDTH > columns
    cut |= (lowest < first_left_out) & (first_left_out < highest)
    cut |= (lowest < second_left_out) & (second_left_out < highest)
    cut |= (lowest < third_left_out) & (third_left_out < highest)
    i = row + tl.arange(0, HEIGHT)
    j = column + tl.arange(0, WIDTH)
    if HAS_CLASSES:
        of_row = tl.load(q_classes + i, mask=i < rows, other=-1)[:, None]
        of_column = tl.load(k_classes + j, mask=j < columns, other=-1)[None, :]
        s = tl.where((of_row == of_column) | (of_row < 0) | (of_column < 0), -float("inf"), s)
    # Only the few tiles with excluded entries need these comparisons.
    if cut:
        diagonal = j[None, :] - i[:, None]
        counts = (j < columns)[None, :] & (diagonal != first_left_out)
        counts &= (diagonal != second_left_out) & (diagonal != third_left_out)
        s = tl.where(counts, s, -float("inf"))
    return tl.exp2(s)


@triton.jit(do_not_specialize=["first_left_out", "second_left_out", "third_left_out", "rows", "columns"])
def sum_tiles(
    q,
    k,
    across,
    down,
    top,
    left,
    height,
    width,
    rows,
    columns,
    first_left_out,
    second_left_out,
    third_left_out,
    q_classes,
    k_classes,
    factor,
    depth,
    SYMMETRIC: tl.constexpr,
    HAS_CLASSES: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Sum the exponentials over the tiles of a strip, rows [top, top + height) and columns [left, left + width).

    Row sums of each tile are written to `across` [tiles of columns, height]. In the symmetric form, column sums are
    written to `down` [tiles of rows, width], for the columns that follow the strip's own rows.
    """
    i = tl.program_id(0) % (height // HEIGHT)
    j = tl.program_id(0) // (height // HEIGHT)
    e = exponentials(
        q, k, top + i * HEIGHT, left + j * WIDTH, rows, columns, first_left_out, second_left_out, third_left_out,
        q_classes, k_classes, factor, depth, HAS_CLASSES, HEIGHT, WIDTH, DEPTH,
    )  # fmt: skip
    tl.store(across + j * height + i * HEIGHT + tl.arange(0, HEIGHT), tl.sum(e, 1))
    if SYMMETRIC:  # noqa: SIM102 - known when the kernel is compiled
        if j * WIDTH >= height:
            tl.store(down + i * width + j * WIDTH + tl.arange(0, WIDTH), tl.sum(e, 0))


@triton.jit(do_not_specialize=["first_left_out", "second_left_out", "third_left_out", "rows", "columns"])
def weigh_tiles(
    q,
    k,
    weight,
    high,
    low,
    top,
    left,
    height,
    rows,
    columns,
    first_left_out,
    second_left_out,
    third_left_out,
    q_classes,
    k_classes,
    factor,
    depth,
    SYMMETRIC: tl.constexpr,
    HAS_LOW: tl.constexpr,
    HAS_CLASSES: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Multiply the exponentials of a strip by the weight of their row and write them in float16 parts.

    In the symmetric form, the factor is the sum of the weights of row and column.
    """
    i = tl.program_id(0) % (height // HEIGHT)
    j = tl.program_id(0) // (height // HEIGHT)
    row = top + i * HEIGHT
    column = left + j * WIDTH
    e = exponentials(
        q, k, row, column, rows, columns, first_left_out, second_left_out, third_left_out, q_classes, k_classes, factor,
        depth, HAS_CLASSES, HEIGHT, WIDTH, DEPTH,
    )  # fmt: skip
    w = tl.load(weight + row + tl.arange(0, HEIGHT))[:, None]
    if SYMMETRIC:
        w = w + tl.load(weight + column + tl.arange(0, WIDTH))[None, :]
    w = e * w
    rounded = w.to(tl.float16)
    high.store([i * HEIGHT, j * WIDTH], rounded)
    if HAS_LOW:
        low.store([i * HEIGHT, j * WIDTH], (w - rounded.to(tl.float32)).to(tl.float16))
