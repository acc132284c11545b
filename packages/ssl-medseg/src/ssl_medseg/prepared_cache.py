"""A tensor computed from files, kept on disk under the hash of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from contrastive_core.errors import UserError
from contrastive_core.training import files

_VERSION = 1
"""To be raised when preprocessing gives other numbers: what lies in caches is then made anew."""


def kept(
    folder: Path | None,
    paths: Sequence[Path],
    settings: Sequence[Any],
    make: Callable[[], tuple[Tensor, dict[str, Any]]],
) -> tuple[Tensor, dict[str, Any]]:
    """A tensor and facts in JSON: from the cache, or made and put there.

    Args:
        folder: of the cache; None makes it anew.
        paths: files or folders it is computed from.
        settings: all else it depends on, as JSON.
        make: computes it.
    """
    if folder is None:
        return make()
    key = json.dumps([_VERSION, [_digest(path) for path in paths], list(settings)], sort_keys=True)
    file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    found = _read(file)
    if found is not None:
        return found
    tensor, facts = make()
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomic(file, save({"tensor": tensor.contiguous()}, {"facts": json.dumps(facts)}))
    return tensor, facts


def _read(file: Path) -> tuple[Tensor, dict[str, Any]] | None:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor("tensor"), json.loads(opened.metadata()["facts"])
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):  # damaged: what it holds can be made again
        return None


def _digest(path: Path) -> list[str]:
    """Hashes of a file, or of the files in a folder."""
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    try:
        return [files.sha256(file) for file in inside if file.is_file() or not path.is_dir()]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected an image or a label") from error
