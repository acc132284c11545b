"""`ssl-vision export`: write a model as a file that other programs open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contrastive_core.errors import UserError
from contrastive_core.training.export import put_in_place, write_exported_program, write_onnx
from ssl_vision.exports import Exportable, open_exportable, write_torchvision

_ENDINGS = (".onnx", ".pt2", ".safetensors")


def export(model: str, out: Path, *, image_size: int = 0, approximate: bool = False, overwrite: bool = False) -> str:
    """Write a model as a file that other programs open, once it has been shown to give what the model gives.

    The ending of the file decides: ``.onnx`` for onnxruntime and others (any batch size; needs the extra ``export``),
    ``.pt2`` for `torch.export.load`, ``.safetensors`` for `load_state_dict` of the ResNet of the same depth in
    torchvision or timm, where they have the same network. A classifier gives logits, an encoder features. Before it is
    put in place the file is loaded and its results on images of noise are compared with the model's: to 1e-4.

    Images go in as RGB in [0, 1]; normalisation is part of the model, but in a .safetensors file the caller's. A JSON
    file beside it, whose content is also in the file's own metadata, says this, with size, classes and differences.

    Args:
        model: Run folder or model folder.
        out: File to write.
        image_size: Side of the images in pixels that .onnx and .pt2 take; 0: that of training.
        approximate: Whether to write .safetensors of an official ResNet-50, -101 or -152 although torchvision's pads
            its max pool differently and gives somewhat different features; the JSON file says how different.
        overwrite: replace files that this command did not write.

    Returns:
        What was written and how it was checked.
    """
    out = Path(out)
    if out.suffix not in _ENDINGS:
        raise UserError(f"{out}: found the ending {out.suffix!r}, expected one of {', '.join(_ENDINGS)}")
    opened = open_exportable(model)
    if image_size:
        opened = Exportable(**{**vars(opened), "image_size": image_size})

    def write(file: Path) -> dict[str, Any]:
        if out.suffix == ".safetensors":
            return write_torchvision(opened, file, approximate=approximate)
        write_program = write_onnx if out.suffix == ".onnx" else write_exported_program
        return write_program(opened.program, file, opened.card(file, normalisation="inside the model"))

    card = put_in_place(out, write, command="ssl-vision export", overwrite=overwrite)
    checked = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in card["checked"].items())
    return f"written to {out} and {out.name}.json: {opened.output} of images of {opened.image_size} px; {checked}"
