"""Find and load the compiled library, either the installed one or one that the user has built.

Loading registers the operators `contrastive_core_native::...` with torch, once per process.
"""

from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from contrastive_core.native.build import CPU_LIBRARY, source_hash

INSTALLED = Path(__file__).parent / "_lib"


class NotLoadedError(Exception):
    """No compiled library could be loaded; the message states the reason and the remedy."""


@dataclass(frozen=True)
class Library:
    """Loaded library."""

    path: Path
    instructions: str
    """Instruction set of the kernels in use: AVX-512 or AVX2."""


def cache_folder() -> Path:
    """Return the folder in which `python -m contrastive_core build` stores the library built from these sources.

    The environment variable `CONTRASTIVE_CORE_CACHE` replaces the user's cache folder.
    """
    cache = os.environ.get("CONTRASTIVE_CORE_CACHE")
    if not cache:
        cache = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "contrastive-core"))
    return Path(cache, source_hash())


@functools.cache
def load() -> Library:
    """Load the library, once per process.

    Raises:
        NotLoadedError: There is no library, torch cannot load it, or the processor lacks its instructions.
    """
    path = _find(CPU_LIBRARY)
    if path is None:
        raise NotLoadedError(
            "it has not been built; run `python -m contrastive_core build`, which needs a C++ compiler and some seconds"
        )
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        use = ctypes.CDLL(str(path)).contrastive_core_use
    except (OSError, AttributeError) as error:
        advice = "run `python -m contrastive_core build` to build it again"
        raise NotLoadedError(f"{path} cannot be loaded: {error}; {advice}") from error
    use.restype = ctypes.c_char_p
    instructions = use(b"best").decode()
    if not instructions:
        raise NotLoadedError("this processor has neither AVX-512 nor AVX2; use the PyTorch backend")
    return Library(path, instructions)


def _find(name: str) -> Path | None:
    places = [folder / name for folder in (INSTALLED / source_hash(), cache_folder())]
    return next((path for path in places if path.is_file()), None)


def set_up(*, instructions: str = "best", largest_block: int = 384, part_omitted: float = 0.5) -> None:
    """Select the instruction set, the block size and the omission threshold, for tests.

    Args:
        instructions: Instruction set to use: "AVX-512", "AVX2" or "best".
        largest_block: Number of rows of the largest block, a multiple of 48.
        part_omitted: Share of the type's precision that may be omitted from the backward pass as negligible.

    Raises:
        NotLoadedError: There is no library, or this processor lacks the instructions.
    """
    library = ctypes.CDLL(str(load().path))
    library.contrastive_core_use.restype = ctypes.c_char_p
    if not library.contrastive_core_use(instructions.encode()):
        raise NotLoadedError(f"this processor lacks {instructions}")
    library.contrastive_core_largest_block(ctypes.c_int64(largest_block))
    library.contrastive_core_part_omitted(ctypes.c_double(part_omitted))
