"""A model with its computation: ONNX, and PyTorch's exported programs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive_core.errors import UserError
from ssl_vision.exporting.exportable import Exportable

_PROTOBUF = 2 << 30
"""What one ONNX file may hold; weights beyond it lie in a second file."""


def write_onnx(model: Exportable, file: Path) -> dict[str, Any]:
    """Write an ONNX model for any batch size and compare it, run by onnxruntime, with the model.

    Returns:
        The card, which is also in the file's metadata.

    Raises:
        UserError: a package is missing, or the file gives something else.
    """
    runtime = _onnx_runtime()
    program = torch.onnx.export(
        _program(model),
        dynamo=True,
        input_names=["images"],
        output_names=[model.output],
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export with dynamo=True returned no program")
    large = sum(p.numel() * p.element_size() for p in model.module.state_dict().values()) > _PROTOBUF * 0.9
    card = model.card(file, normalisation="inside the model")
    program.model.metadata_props["ssl_vision"] = json.dumps(card)
    program.save(file, external_data=large)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([model.output], {"images": images.numpy()})[0])

    card["checked"] = {
        "with": f"onnxruntime {runtime.__version__}",
        "largest_difference": model.compare(run, f"{file.name} in onnxruntime {runtime.__version__}"),
    }
    return card


def write_exported_program(model: Exportable, file: Path) -> dict[str, Any]:
    """Write what `torch.export.load` opens, for any batch size, and compare it with the model.

    Returns:
        The card, which is also in the file, as its extra file ``ssl_vision.json``.

    Raises:
        UserError: the file gives something else.
    """
    program = _program(model)
    card = model.card(file, normalisation="inside the model")
    torch.export.save(program, file, extra_files={"ssl_vision.json": json.dumps(card)})
    written = torch.export.load(file).module()
    card["checked"] = {
        "with": f"torch {torch.__version__}",
        "largest_difference": model.compare(written, f"{file.name} in torch.export"),
    }
    return card


def _program(model: Exportable) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    try:
        return torch.export.export(model.module, (model.images(2),), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # what a module of the user's does may fail in any way
        raise UserError(
            f"{model.source}: torch.export cannot follow {model.options.name} for any batch size: {error}"
        ) from error


def _onnx_runtime() -> Any:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"an .onnx file needs {', '.join(missing)}, not installed here; pip install 'ssl-vision[export]', "
            "or write .pt2"
        )
    import onnxruntime  # noqa: PLC0415 - an extra

    return onnxruntime
