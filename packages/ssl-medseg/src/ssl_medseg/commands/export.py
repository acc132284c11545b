"""`ssl-medseg export`: a segmenter for other programs: a MONAI bundle, ONNX, torch.export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contrastive_core.errors import UserError
from contrastive_core.training.export import put_in_place, write_exported_program, write_onnx
from ssl_medseg.exports.monai_bundle import write_bundle
from ssl_medseg.exports.programs import card_of, program_of
from ssl_medseg.models.checkpoint import load_segmenter

_FILES = {".onnx": write_onnx, ".pt2": write_exported_program}


def export(model: str, out: Path, *, overwrite: bool = False) -> str:
    """Write a segmenter for other programs, once it has been shown to give what the model gives.

    The ending decides. ``.onnx`` (for onnxruntime and others; needs the extra ``export``) and ``.pt2`` (for
    `torch.export.load`) hold the network alone, slices to logits, for any number of slices of the size it was trained
    with; their results on noise are compared with the model's, to 1e-4, and a JSON file beside them, whose content is
    also in their own metadata, says how slices are made and what the classes are.

    A name without an ending is the folder of a MONAI bundle: preprocessing, network, the way back to the image's grid
    and label values in MONAI's own terms. It is run by `monai.bundle` on a generated volume, and its mask compared with
    ours: at least 99 % of the voxels are equal. `ssl-medseg predict` takes the folder too, in place of a model.

    Args:
        model: Run folder or model folder.
        out: File or folder to write, in place of an older one.
        overwrite: Replace files that this command did not write.

    Returns:
        What was written and how it was checked.

    Raises:
        UserError: another ending, no model, or what was written gives something else.
    """
    out = Path(out).expanduser()
    if out.suffix and out.suffix not in _FILES:
        endings = ", ".join(_FILES)
        raise UserError(f"{out}: found the ending {out.suffix!r}, expected {endings}, or none for a MONAI bundle")
    segmenter = load_segmenter(model, device="cpu")
    if not out.suffix:
        checked = write_bundle(segmenter, model, out, overwrite=overwrite)
        share = checked["bundle"]["share_of_equal_voxels"]
        return f"written to {out}: a MONAI bundle; with {checked['bundle']['with']} {share:.2%} of voxels equal"

    def write(file: Path) -> dict[str, Any]:
        return _FILES[out.suffix](program_of(segmenter, model), file, card_of(segmenter, file))

    checked = put_in_place(out, write, command="ssl-medseg export", overwrite=overwrite)["checked"]
    height, width = segmenter.preprocessing.size
    return (
        f"written to {out} and {out.name}.json: logits of slices of {height} x {width} px; "
        f"with {checked['with']}, largest difference {checked['largest_difference']:.2g}"
    )
