"""Export a segmenter as MONAI bundle, ONNX or torch.export program (`ssl-medseg export`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contrastive_core.errors import UserError
from contrastive_core.training.export import put_in_place, write_exported_program, write_onnx
from contrastive_core.training.outputs import run_files
from ssl_medseg.exports.monai_bundle import write_bundle
from ssl_medseg.exports.programs import card_of, program_of
from ssl_medseg.models.model_folder import load_segmenter

_FILES = {".onnx": write_onnx, ".pt2": write_exported_program}


def export(model: str, out: Path, *, overwrite: bool = False) -> str:
    """Export a segmenter for other programs, and verify that the export reproduces the model.

    The file extension selects the format. ``.onnx`` (for onnxruntime and others; requires the extra ``export``) and
    ``.pt2`` (for `torch.export.load`) contain the network only, which maps slices of the training size to logits, for
    any number of slices. Their outputs on random noise must match the model to 1e-4. A JSON file next to them describes
    the preprocessing and the classes; its content is also stored in the metadata of the exported file.

    A name without an extension is the folder of a MONAI bundle. It contains preprocessing, network, and the inverse
    mapping to the grid of the image and its label values, as MONAI transforms. `monai.bundle` runs it on a generated
    volume, and at least 99 % of the voxels must agree with our mask. `ssl-medseg predict` accepts it as a model.

    Args:
        model: Run folder or model folder to use.
        out: File or folder to write; an earlier export is replaced.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        A description of the export and its verification.

    Raises:
        UserError: The extension is unknown, there is no model, or the export does not reproduce the model.
    """
    out = Path(out).expanduser()
    if out.suffix and out.suffix not in _FILES:
        endings = ", ".join(_FILES)
        raise UserError(f"{out}: found the extension {out.suffix!r}, expected {endings}, or none for a MONAI bundle")
    segmenter = load_segmenter(model, device="cpu")
    if not out.suffix:
        checked = write_bundle(segmenter, model, out, overwrite=overwrite)
        share = checked["bundle"]["share_of_equal_voxels"]
        by = checked["bundle"]["with"]
        return f"wrote {out}, a MONAI bundle; {share:.2%} of the voxels of its mask (run by {by}) agree with the model"

    def write(file: Path) -> dict[str, Any]:
        return _FILES[out.suffix](program_of(segmenter, model), file, card_of(segmenter, file))

    checked = put_in_place(
        out, write, network=segmenter.network, command="ssl-medseg export", inputs=run_files(model), overwrite=overwrite
    )["checked"]
    height, width = segmenter.preprocessing.size
    return (
        f"wrote {out} and {out.name}.json, for slices of {height} x {width} pixels; its logits (run by "
        f"{checked['with']}) differ from those of the model by at most {checked['largest_difference']:.2g}"
    )
