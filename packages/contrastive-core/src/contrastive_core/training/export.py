"""Export a model for other programs as ONNX or as a PyTorch exported program.

Before a file replaces an older one, it is opened by its target program and compared with the model.
"""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.training import files
from contrastive_core.training.outputs import Outputs

_TOLERANCE = 1e-4
_PROTOBUF = 2 << 30
"""Largest size of an ONNX file in bytes; larger weights are written to a second file."""


@dataclass(frozen=True)
class Program:
    """Module to export, with the names that are written to the file.

    Attributes:
        module: Module in inference mode on the CPU; maps batches ``[N, ...]`` to one tensor ``[N, ...]``.
        source: Model folder, for error messages.
        network: Architecture, for error messages.
        inputs: Name of the input.
        output: Name of the output.
        example: Function that returns an example batch of a given size, always the same.
        package: Package that exports the module, such as ``ssl_vision``; key of the card in the metadata of the file.
    """

    module: nn.Module
    source: str
    network: str
    inputs: str
    output: str
    example: Callable[[int], Tensor]
    package: str

    @torch.no_grad()
    def compare(self, exported_model: Callable[[Tensor], Tensor], what: str) -> float:
        """Return the largest difference between the outputs of the exported file and of the model.

        The outputs are compared for batches of one and of three samples.

        Args:
            exported_model: Function that runs the exported file on a batch.
            what: Name of the exported file, for error messages.

        Raises:
            UserError: The difference exceeds 1e-4 times the largest output, or 1e-4 if all outputs are below 1.
        """
        largest = 0.0
        for count in (1, 3):
            expected = self.module(self.example(count))
            result = exported_model(self.example(count))
            difference = (result - expected).abs().max().item() if result.shape == expected.shape else float("nan")
            if not difference <= _TOLERANCE * max(1.0, expected.abs().max().item()):
                raise UserError(
                    f"the {self.output} of {what} differ from those of {self.source} by {difference:.2g}, expected at "
                    f"most {_TOLERANCE:g}; nothing was written. Please report this with the versions of torch and onnx"
                )
            largest = max(largest, difference)
        return largest


def write_onnx(program: Program, file: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write an ONNX model for any batch size, run it with onnxruntime and compare it with the model.

    Args:
        program: Module to export.
        file: File to write.
        card: Description for the program that opens the file, stored in its metadata.

    Returns:
        The card with the result of the comparison.

    Raises:
        UserError: A package is missing, or the results of the file differ from those of the model.
    """
    runtime = _onnx_runtime(program.package)
    onnx_program = torch.onnx.export(
        _exported(program), dynamo=True, input_names=[program.inputs], output_names=[program.output], verbose=False
    )
    if onnx_program is None:
        raise RuntimeError("torch.onnx.export with dynamo=True returned no program")
    large = sum(t.numel() * t.element_size() for t in program.module.state_dict().values()) > _PROTOBUF * 0.9
    onnx_program.model.metadata_props[program.package] = json.dumps(card)
    onnx_program.save(file, external_data=large)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run([program.output], {program.inputs: batch.numpy()})[0])

    name = f"onnxruntime {runtime.__version__}"
    return {**card, "checked": {"with": name, "largest_difference": program.compare(run, f"{file.name} in {name}")}}


def write_exported_program(program: Program, file: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write a file for `torch.export.load`, for any batch size, and compare it with the model.

    The card is also stored in the file, as its extra file ``PACKAGE.json``.

    Args:
        program: Module to export.
        file: File to write.
        card: Description for the program that opens the file.

    Returns:
        The card with the result of the comparison.

    Raises:
        UserError: The results of the file differ from those of the model.
    """
    # Write to memory first: on a full disk, torch's writer fails again when it is collected, which aborts the process.
    archive = io.BytesIO()
    with warnings.catch_warnings():
        # torch 2.14 warns of weights in channels-last order, which it writes correctly, as the comparison confirms.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(_exported(program), archive, extra_files={f"{program.package}.json": json.dumps(card)})
    file.write_bytes(archive.getbuffer())
    difference = program.compare(torch.export.load(file).module(), f"{file.name} in torch.export")
    return {**card, "checked": {"with": f"torch {torch.__version__}", "largest_difference": difference}}


def put_in_place(
    out: Path, write: Callable[[Path], dict[str, Any]], *, network: nn.Module, command: str,
    inputs: Iterable[Path] = (), overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write a file and its card ``NAME.json``, replacing older ones only if writing and comparison succeed.

    Args:
        out: File to write.
        write: Function that writes the file to the given path and returns the card.
        network: Network that is exported; the file takes about as much space as its weights.
        command: Program and verb, see `outputs.Outputs`.
        inputs: Files that the command reads, which are never replaced.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        The card.
    """
    targets = [out, *(out.with_name(f"{out.name}{end}") for end in (".json", ".data"))]
    output_files = Outputs(targets, command=command, inputs=inputs, overwrite=overwrite)
    check_space_of(network, out.parent)
    with output_files:
        return _put_in_place(out, write)


def check_space_of(network: nn.Module, folder: Path, *, copies: int = 1) -> None:
    """Compare the space that copies of a network's weights take with the free space.

    Raises:
        UserError: There is too little space.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    files.check_space(folder, round(1.05 * copies * weights) + _COMPUTATION, what="the exported files", files=8)


_COMPUTATION = 1 << 18
"""Smallest number of bytes of an exported file in addition to the weights."""


def _put_in_place(out: Path, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    out.parent.mkdir(parents=True, exist_ok=True)
    # Write to a separate folder, because a large ONNX model consists of two files, one of which names the other.
    new = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        card = write(new / out.name)
        (new / f"{out.name}.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        for part in sorted(new.iterdir()):
            files.sync(part)
            files.put_in_place(part, out.with_name(part.name))
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return card


def _exported(program: Program) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    try:
        return torch.export.export(program.module, (program.example(2),), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:  # the user's module can raise any exception
        raise UserError(
            f"{program.source}: torch.export cannot export {program.network} for any batch size: {error}"
        ) from error


def _onnx_runtime(package: str) -> Any:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"writing an .onnx file needs {', '.join(missing)}, which cannot be found; "
            f"pip install '{package.replace('_', '-')}[export]', or write a .pt2 file"
        )
    import onnxruntime  # noqa: PLC0415 - an extra

    return onnxruntime
