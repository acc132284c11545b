"""The similarity matrix in tiles: which there are, which entries of them count, one buffer for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

# Measured on one CPU: 512 is a tenth faster than 1024. A GPU needs larger tiles to be busy; that size is an estimate.
_BLOCK = {"cpu": 512}
_BLOCK_ELSEWHERE = 4096
# Rows of one class lie close to the diagonal: with small tiles, little is computed in vain beside it.
_BLOCK_WITHIN_CLASSES = 256


@dataclass(frozen=True)
class Candidates:
    """Which entries (row, column) of the matrix count."""

    diagonals: tuple[int, ...] = ()
    """Left out are the entries with column - row equal to one of these."""
    classes: tuple[Tensor, Tensor] | None = None
    """Of rows and columns, ascending; None: all entries count."""
    same: bool = False
    """Whether those of the same class count, or those of different ones."""

    def blank(self, tile: Tensor, rows: slice, columns: slice) -> Tensor:
        """The tile with -inf on the diagonals left out."""
        for diagonal in self.diagonals:
            offset = diagonal + rows.start - columns.start
            if -tile.shape[0] < offset < tile.shape[1]:
                tile.diagonal(offset).fill_(-torch.inf)
        return tile


def tiles(q: Tensor, k: Tensor, candidates: Candidates, *, upper: bool) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and q k^T of every tile in which an entry counts, -inf where one does not, in a fixed order.

    The next tile overwrites the last. With `upper` only tiles on and above the diagonal: the matrix is symmetric.
    """
    block = _block_size(q.device, candidates)
    row_pieces, column_pieces = _pieces(len(q), block), _pieces(len(k), block)
    kinds = _Kinds(candidates.classes, candidates.same, row_pieces, column_pieces) if candidates.classes else None
    buffer = q.new_empty(min(len(q), block) * min(len(k), block))
    for i, rows in enumerate(row_pieces):
        for j, columns in enumerate(column_pieces):
            kind = kinds.of(i, j) if kinds else _Kind.WANTED
            if kind is _Kind.UNWANTED or (upper and j < i):
                continue
            height, width = rows.stop - rows.start, columns.stop - columns.start
            tile = torch.mm(q[rows], k[columns].T, out=buffer[: height * width].view(height, width))
            if kinds and kind is _Kind.MIXED:
                tile.masked_fill_(kinds.unwanted(rows, columns), -torch.inf)
            yield rows, columns, candidates.blank(tile, rows, columns)


def _block_size(device: torch.device, candidates: Candidates) -> int:
    block = _BLOCK.get(device.type, _BLOCK_ELSEWHERE)
    return min(block, _BLOCK_WITHIN_CLASSES) if candidates.classes and candidates.same else block


def _pieces(n: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, n)) for start in range(0, n, block)]


class _Kind(Enum):
    WANTED = 0
    UNWANTED = 1
    MIXED = 2


class _Kinds:
    """Which tiles hold pairs of the same class, of different ones, or both.

    The classes at the ends of each piece are read once; as classes ascend, they tell all without looking into a tile.
    """

    def __init__(
        self, classes: tuple[Tensor, Tensor], same: bool, rows: Sequence[slice], columns: Sequence[slice]
    ) -> None:
        self.classes, self.same = classes, same
        self.rows, self.columns = _ends(classes[0], rows), _ends(classes[1], columns)

    def of(self, i: int, j: int) -> _Kind:
        (first, last), (left, right) = self.rows[i], self.columns[j]
        if last < left or right < first:
            return _Kind.UNWANTED if self.same else _Kind.WANTED
        if first == last == left == right:
            return _Kind.WANTED if self.same else _Kind.UNWANTED
        return _Kind.MIXED

    def unwanted(self, rows: slice, columns: slice) -> Tensor:
        row, column = self.classes[0][rows, None], self.classes[1][None, columns]
        return row != column if self.same else row == column


def _ends(classes: Tensor, pieces: Sequence[slice]) -> list[tuple[int, int]]:
    if not pieces:
        return []
    ends = torch.tensor([[piece.start, piece.stop - 1] for piece in pieces], device=classes.device)
    return [(first, last) for first, last in classes[ends].tolist()]
