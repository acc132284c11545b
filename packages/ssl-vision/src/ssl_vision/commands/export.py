"""`ssl-vision export`: export a model to a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contrastive_core.errors import UserError
from contrastive_core.training.export import put_in_place, write_exported_program, write_onnx
from contrastive_core.training.outputs import run_files
from ssl_vision.exports import Exportable, open_exportable, write_torchvision

_ENDINGS = (".onnx", ".pt2", ".safetensors")


def export(model: str, out: Path, *, image_size: int = 0, approximate: bool = False, overwrite: bool = False) -> str:
    """Export a model to a file for other programs, and verify that the file gives the model's outputs.

    The suffix of the file selects the format: ``.onnx`` for ONNX Runtime and others (any batch size; needs the extra
    ``export``), ``.pt2`` for `torch.export.load`, ``.safetensors`` for `load_state_dict` of the ResNet of the same
    depth in torchvision or timm, if they have the same network. A classifier outputs logits, an encoder features.
    Before the file replaces anything, it is loaded, and its outputs for noise images are compared with the model's, to
    a tolerance of 1e-4.

    Inputs are RGB images in [0, 1]. Normalisation is part of the model; for a .safetensors file, the caller normalises.
    A JSON file beside the file, whose content is also in its metadata, records this, with size, classes and
    differences.

    Args:
        model: Run folder or model folder to use.
        out: File to write.
        image_size: Side in pixels of the images that .onnx and .pt2 take; 0 for the size used in training.
        approximate: Whether to write .safetensors for an official ResNet-50, -101 or -152 although torchvision pads its
            max pooling differently and gives somewhat different features; the JSON file states the difference.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        Message with the file and the result of the comparison.
    """
    out = Path(out)
    if out.suffix not in _ENDINGS:
        raise UserError(f"{out}: found the suffix {out.suffix!r}, expected one of {', '.join(_ENDINGS)}")
    exportable = open_exportable(model)
    if image_size:
        exportable = Exportable(**{**vars(exportable), "image_size": image_size})

    def write(file: Path) -> dict[str, Any]:
        if out.suffix == ".safetensors":
            return write_torchvision(exportable, file, approximate=approximate)
        write_program = write_onnx if out.suffix == ".onnx" else write_exported_program
        return write_program(exportable.program, file, exportable.card(file, normalisation="inside the model"))

    card = put_in_place(
        out, write, network=exportable.module, command="ssl-vision export", inputs=run_files(model), overwrite=overwrite
    )
    comparison = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in card["checked"].items())
    return (
        f"written to {out} and {out.name}.json: {exportable.output} for images of {exportable.image_size} px; "
        f"{comparison}"
    )
