"""Memory bank: embeddings of past batches as additional negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contrastive_core.distributed import gather_rows
from contrastive_core.losses._inputs import check_rows, unit_rows


class MemoryBank:
    """Queue of the last `size` embeddings added, l2-normalised and without gradient.

    Pass `bank.rows` to `nt_xent` or `info_nce` as `bank`, and call `add` with the batch's keys after computing the
    loss, because a sample's own key must not be among its negatives. Keys should come from a slowly changing network,
    such as a moving average of the trained one (`contrastive_core.optim.average.MovingAverage`), so that old rows
    remain comparable with new ones.

    The bank starts empty; once it is full, a new row replaces the oldest. With several processes, `add(keys,
    gather=True)` adds the keys of all processes in rank order, so that each process holds the bank that a single
    process would build from the union of the batches. A bank restored with `load_state_dict` gives bitwise the same
    results as one that was not interrupted.

    Args:
        size: Largest number of embeddings; 65536 in MoCo.
        features: Width D of the embeddings.
        device: Device that stores them.
        dtype: Storage type, independent of autocast. In float32 the bank takes 4 * size * D bytes.

    Raises:
        ValueError: `size` or `features` is below 1.

    Reference: He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning", section 3.

    >>> import torch
    >>> bank = MemoryBank(3, 2)
    >>> bank.add(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    >>> bank.rows
    tensor([[0.6000, 0.8000],
            [0.0000, 1.0000]])
    """

    def __init__(
        self,
        size: int,
        features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if size < 1 or features < 1:
            raise ValueError(f"MemoryBank: got size {size} and features {features}, expected at least 1 of both")
        self._rows = torch.zeros(size, features, device=device, dtype=dtype)
        self._total = 0

    def __len__(self) -> int:
        return min(self._total, len(self._rows))

    @property
    def rows(self) -> Tensor:
        """Embeddings [M, D] with M at most `size`, in no particular order. The next `add` modifies them in place."""
        return self._rows[: len(self)]

    @torch.no_grad()
    def add(self, keys: Tensor, *, gather: bool = False) -> None:
        """Add embeddings [N, D], l2-normalised here; if N exceeds `size`, only the last `size` are added.

        Raises:
            ValueError: The width differs from the bank's; with `gather`, the number of keys differs between processes
                (raised on each).
            TypeError: The keys are not floating point.
        """
        check_rows("MemoryBank.add", keys=keys, bank=self._rows)
        keys = unit_rows(keys, self._rows.dtype)
        keys = gather_rows(keys) if gather else keys
        size = len(self._rows)
        first = self._total + max(0, len(keys) - size)
        self._total += len(keys)
        index = torch.arange(first, self._total, device=keys.device) % size
        self._rows[index] = keys[-size:]

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the rows and the total number of rows added."""
        return {"rows": self._rows.clone(), "added": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Raises:
            ValueError: The state is not that of a bank of this size.
        """
        if missing := {"rows", "added"} - set(state):
            raise ValueError(
                f"MemoryBank: the state lacks {' and '.join(sorted(missing))}, expected the result of "
                "MemoryBank.state_dict()"
            )
        if state["rows"].shape != self._rows.shape:
            raise ValueError(
                f"MemoryBank: got the state of a bank of shape {list(state['rows'].shape)}, expected "
                f"{list(self._rows.shape)}"
            )
        self._rows.copy_(state["rows"])
        self._total = int(state["added"])
