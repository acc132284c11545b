"""`python -m contrastive_core`: which backend is in use here, and why another is not."""

from contrastive_core._info import info

print(info())  # noqa: T201 - what the command is for
