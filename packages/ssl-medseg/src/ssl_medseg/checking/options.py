"""What `check` may repair in a copy of the data."""

from __future__ import annotations

from typing import Literal

Fix = Literal["grid", "fractions", "sform", "qform"]
