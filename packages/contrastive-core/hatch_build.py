"""Compile the native library when a wheel is built, if torch and a compiler are available; else build a pure wheel.

The environment variable `CONTRASTIVE_CORE_EXT` controls the build: auto (the default) includes the library if it can be
built, 0 omits it, and cpu fails if it cannot be built.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VARIABLE = "CONTRASTIVE_CORE_EXT"
PACKAGE = Path("src", "contrastive_core", "native")


class NativeLibrary(BuildHookInterface):  # type: ignore[type-arg] # pip's hatchling is not typed
    """Build hook, which hatchling finds by its base class."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wanted = os.environ.get(VARIABLE, "auto")
        if wanted not in ("auto", "0", "cpu"):
            raise ValueError(f"{VARIABLE} is {wanted!r}, expected auto, 0 or cpu")
        beside = Path(self.root, PACKAGE, "_lib")
        shutil.rmtree(beside, ignore_errors=True)  # a library of an earlier build would be loaded
        if wanted == "0":
            return
        build = _module(Path(self.root, PACKAGE, "build.py"))
        # An editable install loads the library from the source folder; a wheel contains it.
        hashed = build.source_hash()  # edited sources must not load a library built from older ones
        # The folder is removed when the process ends, because hatchling reads the file later.
        self.scratch = tempfile.TemporaryDirectory(prefix="contrastive-core-", ignore_cleanup_errors=True)
        folder = beside / hashed if version == "editable" else Path(self.scratch.name)
        try:
            library = build.build_cpu(folder)
        except build.BuildError as error:
            if wanted != "auto":
                raise
            self.app.display_warning(f"contrastive-core is built without its compiled library: {error}")
            return
        build_data["pure_python"] = False
        # The library does not depend on the versions of Python and torch.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        if version != "editable":
            build_data["force_include"][str(library)] = f"contrastive_core/native/_lib/{hashed}/{library.name}"


def _module(path: Path) -> ModuleType:
    """Load a file of the package as a module, because the package itself cannot be imported here."""
    spec = importlib.util.spec_from_file_location("contrastive_core_build", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
