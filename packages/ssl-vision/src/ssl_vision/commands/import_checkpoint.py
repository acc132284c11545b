"""`ssl-vision import-checkpoint`: convert a network that another program trained to a model folder."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from contrastive_core.errors import UserError
from contrastive_core.text import several
from contrastive_core.training.documents import read_text
from contrastive_core.training.files import write_atomic
from contrastive_core.training.model_file import model_files, save_model
from contrastive_core.training.names import check_labels
from contrastive_core.training.outputs import Outputs
from ssl_vision.importing.imported import Imported
from ssl_vision.importing.simclr import read_simclr
from ssl_vision.importing.tensorflow import is_bundle
from ssl_vision.importing.torch_resnets import (
    ImportedNormalization,
    for_channels,
    read_resnet,
    require_unnormalized,
)
from ssl_vision.models import EncoderOptions
from ssl_vision.models.encoder import STATISTICS
from ssl_vision.models.model_folder import Architecture, classifier_card, encoder_card
from ssl_vision.models.pretrained import channels_in, load_weights
from ssl_vision.models.resnet import Stem


def import_checkpoint(
    source: Path,
    out: Path,
    *,
    architecture: str = "",
    prefix: str = "",
    stem: Stem | Literal["auto"] = "auto",
    normalize: ImportedNormalization = "auto",
    image_size: int = 0,
    classifier_layer: int | None = None,
    classes: Path | None = None,
    overwrite: bool = False,
) -> str:
    """Convert a checkpoint of another program to a model folder, for knn, linear, finetune and the other commands.

    Supported are the official SimCLR and SimCLRv2 checkpoints (TensorFlow 1 and 2 and SavedModel, without TensorFlow),
    and ResNets from torchvision, timm, lightly, solo-learn, VISSL, MoCo and suncet, in .safetensors files or files
    written by torch.save. Depth, width, stem and head are inferred from names and shapes. No code in a file is run.
    Unused tensors and assumptions are printed and written to import.json.

    Args:
        source: Checkpoint: a file; for TensorFlow its name without suffix, or its folder.
        out: Folder to write.
        architecture: Architecture, if the names do not show it: ``timm:NAME`` or ``torchvision:NAME``, such as a
            ResNet-D, a vision transformer, ConvNeXt or EfficientNet.
        prefix: Prefix of the network's names, if the checkpoint holds several: ``ema_model/`` for the moving average
            in a TensorFlow 1 checkpoint, ``encoder_k`` for MoCo's second encoder.
        stem: Stem of a network whose first convolution is 3x3; the weights do not show its padding.
        normalize: Normalisation of the images in training, which becomes part of the encoder; for other than three
            channels, ``none``.
        image_size: Side of the images in pixels; 0 for 224, or 32 with a small stem.
        classifier_layer: Layer of the projection head that the classifier reads: 0 for the features (linear evaluation,
            and fine-tuning on all labels), 1 for SimCLRv2 fine-tuned on 1 % or 10 %. Needed only if the checkpoint also
            holds a head, because it does not state the layer.
        classes: File of the classifier's class names, one per line; by default they are numbers.
        overwrite: Whether to replace files that this command did not write.

    Returns:
        Summary of what was read, assumed and left out.
    """
    source, out = Path(source), Path(out)
    inputs = [source.parent if is_bundle(source) else source, *([classes] if classes else [])]
    output_files = Outputs(
        [*model_files(out / "model"), out / "import.json"], command="ssl-vision import-checkpoint", inputs=inputs,
        folder=out, overwrite=overwrite,
    )  # fmt: skip
    if architecture:
        unused = {
            "--stem": stem != "auto", "--classes": classes is not None,
            "--classifier-layer": classifier_layer is not None,
        }  # fmt: skip
        if any(unused.values()):
            raise UserError(
                f"{', '.join(flag for flag, is_set in unused.items() if is_set)}: not used with --architecture, which "
                "imports an encoder without its classifier; leave it out"
            )
        with output_files:
            return _import_named(source, out, architecture, prefix=prefix, normalize=normalize, image_size=image_size)
    if is_bundle(source):
        if stem != "auto" or normalize != "auto":
            raise UserError(
                f"{source}: --stem and --normalize are for PyTorch checkpoints; this one is from TensorFlow"
            )
        imported = read_simclr(source, prefix=prefix)
    else:
        imported = read_resnet(source, prefix=prefix, stem=stem, normalize=normalize)
    if image_size:
        imported = replace(imported, image_size=image_size)
    layer = classifier_layer
    if layer is None and imported.classifier is not None and not imported.head:
        layer = 0
    if layer is None and classes is not None:
        raise UserError(
            f"--classes {classes}: there is no classifier to name; "
            + ("set --classifier-layer" if imported.classifier is not None else f"{source} has none")
        )
    with output_files:
        return _write(source, out, imported, layer=layer, classes=classes)


def _write(source: Path, out: Path, imported: Imported, *, layer: int | None, classes: Path | None) -> str:
    content = _write_encoder(imported, out) if layer is None else _write_classifier(imported, out, layer, classes)
    if layer is None and imported.classifier is not None:
        imported.left_out = sorted([*imported.left_out, *(imported.classifier_names or ())])
        imported.notes.append(
            f"its classifier of {len(imported.classifier[0])} classes was left out, because the checkpoint does not "
            "state which layer of the head it reads; set --classifier-layer 0 or 1 to import the classifier"
        )
    summary = _summary(source, out, imported, content)
    card = {
        "source": str(source),
        "encoder": asdict(imported.options) | {"weights": None},
        "assumed": imported.notes,
        "left_out": imported.left_out,
    }
    write_atomic(out / "import.json", (json.dumps(card, indent=1) + "\n").encode())
    return summary


def _import_named(
    source: Path,
    out: Path,
    name: str,
    *,
    prefix: str,
    normalize: ImportedNormalization,
    image_size: int,
) -> str:
    statistics = "none" if normalize == "auto" else normalize
    options = EncoderOptions(name=name, weights=source, normalize=statistics)
    channels = channels_in(options, prefix=prefix)
    if channels != 3:
        require_unnormalized(normalize, channels, source)
        options = for_channels(options, channels)
    encoder, options, size, notes = load_weights(options, image_size=image_size or None, prefix=prefix)
    if normalize == "auto":
        library = "the configuration of timm" if name.startswith("timm:") else "torchvision"
        mean, std = (options.mean, options.std) if options.mean else STATISTICS[options.normalize]
        notes = [
            *notes,
            f"images are normalised with mean {mean} and deviation {std}, as in {library}; otherwise set --normalize",
        ]
    state = {f"encoder.{key}": tensor for key, tensor in encoder.state_dict().items()}
    save_model(out / "model", state, encoder_card(options, image_size=size, head=None))
    card = {"source": str(source), "encoder": asdict(options), "assumed": notes, "left_out": []}
    write_atomic(out / "import.json", (json.dumps(card, indent=1) + "\n").encode())
    kind = "" if channels == 3 else f", {channels} channels"
    lines = [f"{source}: an encoder; {name}, {encoder.feature_dim} features, {size} px{kind}"]
    return "\n".join([*lines, *(f"assumed: {note}" for note in notes), f"written to {out}"])


def _write_encoder(imported: Imported, out: Path) -> str:
    head = imported.build_head()
    state = {f"encoder.{name}": tensor for name, tensor in imported.build_encoder().state_dict().items()}
    state |= {f"head.{name}": tensor for name, tensor in imported.head.items()}
    save_model(out / "model", state, encoder_card(imported.options, image_size=imported.image_size, head=head))
    if head is None:
        return "an encoder"
    return f"an encoder and its projection head ({len(head.layers)} layers, {head.out_features} outputs)"


def _write_classifier(imported: Imported, out: Path, layer: int, file: Path | None) -> str:
    model, head = imported.build_classifier(layer), imported.build_head()
    names = _class_names(file, model.fc.out_features)
    shape = None if head is None else (len(head.layers), head.out_features)
    architecture = Architecture(imported.options, imported.image_size, shape, layer)
    save_model(out / "model", dict(model.state_dict()), classifier_card(architecture, names))
    return f"a classifier of {len(names)} classes on {f'layer {layer} of its head' if layer else 'its features'}"


def _class_names(file: Path | None, count: int) -> list[str]:
    if file is None:
        return [str(number) for number in range(count)]
    lines = read_text(Path(file), expected="a text file with one class name per line").split("\n")
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count or len(set(names)) != count:
        raise UserError(f"--classes {file} has {len(set(names))} different names; the classifier has {count} classes")
    check_labels(names, what="class", source=file)
    return names


def _summary(source: Path, out: Path, imported: Imported, content: str) -> str:
    options = imported.options
    parts = [f"{options.name}, width {options.width_multiplier:g}, {options.stem} stem"]
    parts += [f"selective kernels {options.sk_ratio:g}"] if options.sk_ratio else []
    parts += [f"{options.image_channels} channels"] if options.image_channels != 3 else []
    parts += [f"{options.variant}'s variant", f"normalisation {options.normalize}", f"{imported.image_size} px"]
    lines = [f"{source}: {content}; {', '.join(parts)}"]
    lines += [f"assumed: {note}" for note in imported.notes]
    if imported.left_out:
        kinds = Counter(_kind(name) for name in imported.left_out)
        kind_list = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(6))
        lines.append(f"left out {several(len(imported.left_out), 'tensor')}: {kind_list}; all in {out / 'import.json'}")
    return "\n".join([*lines, f"written to {out}"])


def _kind(name: str) -> str:
    """Return a short name for related tensors: optimiser slots, or the first part of the name within its container."""
    if name.endswith("/Momentum") or ".OPTIMIZER_SLOT" in name:
        return "optimiser"
    parts = name.partition("/")[0].split(".")
    return next((part for part in parts[:-1] if part not in _CONTAINERS), parts[0])


_CONTAINERS = ("state_dict", "model", "classy_state_dict", "base_model", "module")
