"""Find where a training command makes the host wait for a CUDA device.

    python -m tools.gpu.waits --out waits.json ssl_vision pretrain DATA OUT ...

The command runs in this process under `torch.cuda.set_sync_debug_mode`, which reports every wait that PyTorch detects.
Instead of a package with a command line, you can give a module that is a program, such as tools.gpu.mvpl. The file
lists the number of waits by the innermost line of our packages.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("contrastive_core", "ssl_vision", "ssl_medseg", "ssl_video")
OWN = (*PACKAGES, "tools/gpu")


def run(package: str, arguments: list[str]) -> int:
    """Run the command line of a package, or a module as a program, and return the exit status."""
    if package in PACKAGES:
        status: int = importlib.import_module(f"{package}.cli").main(arguments)
        return status
    sys.argv[1:] = arguments
    importlib.import_module(package).main()
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="package and arguments of its command line")
    arguments = parser.parse_args()
    package, *argv = arguments.command
    counts: collections.Counter[str] = collections.Counter()
    usual = warnings.showwarning

    def count(message: Warning | str, *args: Any, **more: Any) -> None:
        if "synchronizing CUDA operation" not in str(message):
            usual(message, *args, **more)
            return
        frames = [frame for frame in traceback.extract_stack() if any(f"/{name}/" in frame.filename for name in OWN)]
        last = frames[-1] if frames else traceback.extract_stack()[-3]
        counts[f"{'/'.join(Path(last.filename).parts[-3:])}:{last.lineno} {last.line}"] += 1

    warnings.showwarning = count
    warnings.simplefilter("always")
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("warn")
    status = run(package, argv)
    arguments.out.write_text(json.dumps({"status": status, "waits": dict(counts.most_common())}, indent=1))
    print(json.dumps(dict(counts.most_common(25)), indent=1))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
