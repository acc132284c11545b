"""Model folders: save encoders and classifiers, and open them for evaluation, export or further training."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.heads import ProjectionHead
from contrastive_core.training import Run, check_model_code, load_model
from contrastive_core.training.config import from_plain
from contrastive_core.training.documents import reading
from contrastive_core.training.launch import choose_device
from contrastive_core.training.model_file import build_from
from contrastive_core.training.names import check_labels
from contrastive_core.training.weights import below_prefix
from ssl_vision.data import ImageSet, measure_statistics
from ssl_vision.data.dataset import ReadOptions
from ssl_vision.labels.files import labels_digest
from ssl_vision.labels.subsets import merge_fingerprints, sample_fingerprints
from ssl_vision.methods import SimCLR
from ssl_vision.models import Classifier, EncoderOptions, build_encoder
from ssl_vision.models.pretrained import load_weights

PIXELS = "pixels"
"""Model without parameters: the pixels of an image are its features."""

NONE = "none"
"""Value for no model: random weights, or those of a file (`EncoderOptions.weights`)."""

ENCODER_FORMAT = "ssl-vision encoder 1"
CLASSIFIER_FORMAT = "ssl-vision classifier 1"
_LARGEST_IMAGE, _MOST_LAYERS = 8192, 100
_CHANGED = "the file was changed by hand, or a newer version wrote it"


@dataclass(frozen=True)
class LoadedModel:
    """An encoder on its device, with the size of its input images."""

    encoder: nn.Module
    image_size: int
    device: torch.device
    channels: int = 3
    validated_on: tuple[str, ...] = ()
    """Fingerprints of the images used for validation during training, see `sample_fingerprints`."""
    bits: int = 0
    """Significant bits of the 16-bit files that it was trained on, see `ReadOptions`."""


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier on its device, in inference mode, with its classes in the order of the logits."""

    model: Classifier
    classes: list[str]
    image_size: int
    device: torch.device
    channels: int = 3
    validated_on: tuple[str, ...] = ()
    """Fingerprints of the images used for validation during training, see `sample_fingerprints`."""
    class_names: Mapping[str, str] = field(default_factory=dict)
    """Names of classes whose labels are WordNet identifiers, see `find_class_names`."""
    bits: int = 0
    """Significant bits of the 16-bit files that it was trained on, see `ReadOptions`."""


@dataclass(frozen=True)
class Pretrained:
    """A pre-trained model to continue from, on the CPU; `head` is None if the folder has none."""

    encoder: nn.Module
    head: ProjectionHead | None
    options: EncoderOptions
    image_size: int
    validated_on: tuple[str, ...] = ()
    """Fingerprints of the images used for validation during its training, see `sample_fingerprints`."""
    bits: int = 0
    """Significant bits of the 16-bit files that it was trained on, see `ReadOptions`."""

    def copy_to(self, network: SimCLR) -> None:
        """Copy the weights into a network with the same encoder."""
        network.encoder.load_state_dict(self.encoder.state_dict())
        if self.head is not None:
            network.head.load_state_dict(self.head.state_dict())


@dataclass(frozen=True)
class Architecture:
    """Architecture of a classifier, without its weights.

    Attributes:
        encoder: Network.
        image_size: Side of the training images in pixels.
        head: Numbers of linear layers and outputs of the projection head that the neck is cut from; None without a
            neck.
        from_layer: Number of layers of that head in the neck.
    """

    encoder: EncoderOptions
    image_size: int
    head: tuple[int, int] | None = None
    from_layer: int = 0

    def build(self, classes: int) -> Classifier:
        """Build the classifier, randomly initialised."""
        encoder = build_encoder(self.encoder, image_size=self.image_size)
        return Classifier(encoder, self._neck(encoder), classes)

    def _neck(self, encoder: nn.Module) -> nn.Sequential:
        if self.head is None:
            return nn.Sequential()
        layers, out_features = self.head
        if self.from_layer < layers:
            # Layers beyond the neck are not needed, and a changed model.json may state any number and size of them.
            layers, out_features = self.from_layer + 1, 1
        return ProjectionHead(_feature_dim(encoder), out_features, layers=layers).first_layers(self.from_layer)


class _Pixels(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def encoder_card(
    encoder: EncoderOptions,
    *,
    image_size: int,
    head: ProjectionHead | None,
    epoch: int | None = None,
    validated_on: Sequence[str] = (),
    bits: int = 0,
) -> dict[str, object]:
    """Describe an encoder for model.json.

    Args:
        encoder: Network.
        image_size: Side of the images in pixels.
        head: Its projection head among the tensors (``head.*``), if any.
        epoch: Number of epochs of training.
        validated_on: Fingerprints of the images used for validation of the model that training started from.
        bits: Significant bits of its 16-bit images, see `ReadOptions`.
    """
    head_card = None if head is None else {"layers": len(head.layers), "out_features": head.out_features}
    return _with_images(validated_on, bits) | {
        "format": ENCODER_FORMAT,
        "encoder": asdict(encoder),
        "head": head_card,
        "image_size": image_size,
        "epoch": epoch,
    }


def _with_images(fingerprints: Sequence[str], bits: int) -> dict[str, object]:
    card: dict[str, object] = {"validation": {"fingerprints": list(fingerprints)}} if fingerprints else {}
    return card | ({"bits": bits} if bits else {})


def classifier_card(
    architecture: Architecture,
    classes: list[str],
    *,
    epoch: int | None = None,
    class_names: Mapping[str, str] | None = None,
    validated_on: Sequence[str] = (),
    bits: int = 0,
) -> dict[str, object]:
    """Describe a classifier for model.json.

    Args:
        architecture: Architecture.
        classes: Names of the classes in the order of the logits.
        epoch: Number of epochs of training.
        class_names: Names of classes that are wnids.
        validated_on: Fingerprints of the images used for validation, also of the model that training started from.
        bits: Significant bits of its 16-bit images, see `ReadOptions`.
    """
    head = architecture.head
    return _with_images(validated_on, bits) | {
        "format": CLASSIFIER_FORMAT,
        "encoder": asdict(architecture.encoder),
        "head": None if head is None else {"layers": head[0], "out_features": head[1]},
        "from_layer": architecture.from_layer,
        "classes": classes,
        "class_names": dict(class_names or {}),
        "image_size": architecture.image_size,
        "epoch": epoch,
    }


def save_encoder(
    run: Run,
    model: SimCLR,
    *,
    encoder: EncoderOptions,
    image_size: int,
    epoch: int,
    start: Pretrained | None = None,
    bits: int = 0,
    folder: str = "model",
) -> Path:
    """Write encoder and head to the run's folder; `start` is the model that training started from, if any."""
    validated_on = () if start is None else start.validated_on
    metadata = encoder_card(
        encoder, image_size=image_size, head=model.head, epoch=epoch, validated_on=validated_on, bits=bits
    )
    return run.save_model(dict(model.state_dict()), metadata, folder=folder)


def save_classifier(
    run: Run,
    model: Classifier,
    *,
    architecture: Architecture,
    classes: list[str],
    epoch: int,
    labelled: ImageSet | None = None,
    validation: ImageSet | None = None,
    validated_before: Sequence[str] = (),
    class_names: Mapping[str, str] | None = None,
    bits: int = 0,
    folder: str = "model",
) -> Path:
    """Write a classifier to the run's folder.

    Its card records the `labelled` images that it was trained on, and the validation images, if any, with those of
    the models that training started from (`validated_before`).
    """
    training_labels = None if labelled is None else {"images": len(labelled), "sha256": labels_digest(labelled)}
    own = [] if validation is None else sample_fingerprints(validation)
    card = classifier_card(
        architecture, classes, epoch=epoch, class_names=class_names,
        validated_on=merge_fingerprints(own, validated_before), bits=bits,
    )  # fmt: skip
    card["labelled"] = training_labels
    return run.save_model(dict(model.state_dict()), card, folder=folder)


def load_encoder(
    model: str, *, device: str = "auto", image_size: int | None = None, encoder: EncoderOptions | None = None
) -> LoadedModel:
    """Open the encoder of a run folder or model folder, also of a classifier; ``pixels`` only needs `image_size`.

    Raises:
        UserError: There is no model, it is damaged, or of another kind.
    """
    torch_device = choose_device(device)
    if model == PIXELS:
        return LoadedModel(_Pixels(), image_size or 32, torch_device)
    if model == NONE:
        pretrained = _open_named(encoder, image_size=image_size)
        return LoadedModel(
            _ready(pretrained.encoder, torch_device),
            pretrained.image_size,
            torch_device,
            pretrained.options.image_channels,
        )
    if encoder is not None:
        raise UserError(f"{model}: a model includes its encoder; leave out encoder, or use {NONE!r} as the model")
    folder, tensors, card = _open(model, ENCODER_FORMAT, CLASSIFIER_FORMAT)
    options, size = _encoder_settings(folder, card)
    net = _build_encoder(options, size, tensors, folder)
    validated_on = _validated_on(folder, card)
    return LoadedModel(
        _ready(net, torch_device), size, torch_device, options.image_channels, validated_on, _bits(folder, card)
    )


def load_pretrained(model: str) -> Pretrained:
    """Open the encoder of a run folder or model folder, with its projection head, for further training.

    The folder of a classifier gives its encoder without a head.

    Raises:
        UserError: There is no model, it is damaged, or of another kind.
    """
    folder, tensors, card = _open(model, ENCODER_FORMAT, CLASSIFIER_FORMAT)
    options, size = _encoder_settings(folder, card)
    encoder = _build_encoder(options, size, tensors, folder)
    head = None
    in_head = below_prefix(tensors, "head.")
    if in_head:
        # Counted, not read from the card, because cards of early runs do not describe the head.
        layers = sum(name.endswith(".linear.weight") for name in in_head)
        with reading(folder, "its projection head is not one of this package", _CHANGED):
            out_features = in_head[f"layers.{layers - 1}.linear.weight"].shape[0]
        features = _feature_dim(encoder)
        head = build_from(lambda: ProjectionHead(features, out_features, layers=layers), in_head, source=folder)
    return Pretrained(encoder, head, options, size, _validated_on(folder, card), _bits(folder, card))


def open_pretrained(
    model: str | None, *, encoder: EncoderOptions, image_size: int, layers: int, out_features: int
) -> Pretrained | None:
    """Open a model for further pre-training: its encoder, and its projection head if layers and outputs match.

    Without a model, the weights of the encoder's file are used; without these, the result is None.

    Raises:
        UserError: There is no model, or an encoder is given that differs from the model's.
    """
    if model is None or model == NONE:
        return None if encoder.weights is None else _open_named(encoder, image_size=image_size)
    pretrained = load_pretrained(model)
    if encoder not in (EncoderOptions(), pretrained.options):
        raise UserError(f"{model}: {_difference(pretrained.options, encoder)}; leave out the encoder, or --init")
    head = pretrained.head
    fits = head is not None and (len(head.layers), head.out_features) == (layers, out_features)
    return pretrained if fits else replace(pretrained, head=None)


def _difference(own: EncoderOptions, other: EncoderOptions) -> str:
    """Describe the options of an encoder that differ from the model's, as ``its encoder.sk_ratio is 0.0, not 0.5``."""
    names = [option.name for option in fields(own) if getattr(own, option.name) != getattr(other, option.name)]
    return "its " + ", ".join(f"encoder.{name} is {getattr(own, name)}, not {getattr(other, name)}" for name in names)


def _open_named(encoder: EncoderOptions | None, *, image_size: int | None) -> Pretrained:
    """Open an encoder by name with weights from a file."""
    if encoder is None or encoder.weights is None:
        raise UserError(
            f"the model is {NONE!r}: expected a network and its weights (--encoder.name and --encoder.weights), or a "
            "run folder or model folder instead"
        )
    net, options, size, notes = load_weights(encoder, image_size=image_size)
    for note in notes:
        print(f"note: {encoder.weights}: {note}", file=sys.stderr, flush=True)  # noqa: T201 - also seen from Python
    return Pretrained(net, None, options, size)


def with_statistics(options: EncoderOptions, images: ImageSet | None) -> EncoderOptions:
    """Add the mean and deviation of these images to the options, if the encoder uses them and they are unknown."""
    if images is None or not options.needs_statistics:
        return options
    mean, std = measure_statistics(images)
    return replace(options, normalize="data", mean=mean, std=std)


def build_simclr(encoder: EncoderOptions, *, image_size: int, layers: int, out_features: int) -> SimCLR:
    """Build encoder and projection head with random weights, in the memory format that is fastest for convolutions."""
    network = SimCLR(build_encoder(encoder, image_size=image_size), projection_dim=out_features, layers=layers)
    return network.to(memory_format=torch.channels_last)


def load_simclr(model: str) -> SimCLR:
    """Open a pre-trained model, encoder and projection head, on the CPU.

    Raises:
        UserError: There is no model, it is damaged, or it has no projection head.
    """
    pretrained = load_pretrained(model)
    if pretrained.head is None:
        raise UserError(
            f"{model}: found an encoder without a projection head; expected a model from `ssl-vision pretrain`"
        )
    simclr = SimCLR(pretrained.encoder, projection_dim=pretrained.head.out_features, layers=len(pretrained.head.layers))
    simclr.head = pretrained.head
    return simclr


def load_classifier(model: str, *, device: str = "auto") -> LoadedClassifier:
    """Open the run folder or model folder of a fine-tuned or distilled classifier.

    Raises:
        UserError: There is no model, it is damaged, or it is an encoder without classes.
    """
    torch_device = choose_device(device)
    folder, tensors, card = _open(model, CLASSIFIER_FORMAT)
    architecture, classes = _architecture(folder, card)
    classifier = build_from(lambda: architecture.build(len(classes)), tensors, source=folder)
    validated_on = _validated_on(folder, card)
    size, channels = architecture.image_size, architecture.encoder.image_channels
    with reading(folder, "model.json names no classes", _CHANGED):
        names = dict(card.get("class_names") or {})
    check_labels(names.values(), what="class", source=folder / "model.json")
    return LoadedClassifier(
        _ready(classifier, torch_device),
        classes,
        size,
        torch_device,
        channels,
        validated_on,
        names,
        _bits(folder, card),
    )


def load_architecture(model: str) -> Architecture:
    """Return the architecture of the classifier in a folder, to build another one like it.

    Raises:
        UserError: See `load_classifier`.
    """
    folder, _, card = _open(model, CLASSIFIER_FORMAT)
    return _architecture(folder, card)[0]


def _open(model: str, *formats: str) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Return the folder of the model, its tensors and its card, if it has one of the formats."""
    folder = Path(model)
    if (folder / "model").is_dir():
        folder = folder / "model"
    tensors, card = load_model(folder, formats=formats, remedy=_remedy)
    return folder, tensors, card


def _remedy(model_format: object) -> str:
    if model_format == ENCODER_FORMAT:
        return "fine-tune it first (`ssl-vision finetune`)"
    return "give the out folder of `ssl-vision pretrain`, `finetune` or `distill`"


def _validated_on(folder: Path, card: dict[str, Any]) -> tuple[str, ...]:
    """Return the fingerprints of the validation images that a model's card records."""
    with reading(folder, "model.json lists no validation images", _CHANGED):
        return tuple(map(str, (card.get("validation") or {}).get("fingerprints", ())))


def _bits(folder: Path, card: dict[str, Any]) -> int:
    """Return the significant bits of the 16-bit images that a model was trained on; 0 for all 16."""
    with reading(folder, "model.json does not state the bits of its images", _CHANGED):
        return ReadOptions(from_plain(int, card.get("bits", 0), "bits")).bits


def _encoder_settings(folder: Path, card: dict[str, Any]) -> tuple[EncoderOptions, int]:
    with reading(folder, "model.json does not describe an encoder and the size of its images", _CHANGED):
        options = from_plain(EncoderOptions, card["encoder"], "encoder")
        size = from_plain(int, card["image_size"], "image_size")
        if not 1 <= size <= _LARGEST_IMAGE:
            raise ValueError(f"image_size is {size}; expected 1 to {_LARGEST_IMAGE}")
    # Names of torchvision and timm are looked up in their registries, so that a model folder cannot choose other code.
    if ":" in options.name and not options.name.startswith(("torchvision:", "timm:")):
        check_model_code(options.name, model=folder)
    return options, size


def _architecture(folder: Path, card: dict[str, Any]) -> tuple[Architecture, list[str]]:
    options, size = _encoder_settings(folder, card)
    with reading(folder, "model.json does not describe a classifier", _CHANGED):
        head = None
        if card["head"] is not None:
            layers = from_plain(int, card["head"]["layers"], "head.layers")
            if not 1 <= layers <= _MOST_LAYERS:
                raise ValueError(f"head.layers is {layers}; expected 1 to {_MOST_LAYERS}")
            head = (layers, from_plain(int, card["head"]["out_features"], "head.out_features"))
        from_layer = from_plain(int, card["from_layer"], "from_layer")
        classes = from_plain(list[str], card["classes"], "classes")
    check_labels(classes, what="class", source=folder)
    return Architecture(options, size, head, from_layer), classes


def _build_encoder(options: EncoderOptions, size: int, tensors: dict[str, Tensor], folder: Path) -> nn.Module:
    return build_from(lambda: build_encoder(options, image_size=size), below_prefix(tensors, "encoder."), source=folder)


def _feature_dim(encoder: nn.Module) -> int:
    return int(encoder.feature_dim)  # type: ignore[arg-type]


def _ready(module: nn.Module, device: torch.device) -> Any:
    return module.eval().to(device).to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Start:
    """Start of a classifier: its architecture, and the weights of a pre-trained model, if there is one."""

    architecture: Architecture
    weights: Pretrained | None = None

    @property
    def validated_on(self) -> tuple[str, ...]:
        """Fingerprints of the images used for validation while the pre-trained model was trained."""
        return () if self.weights is None else self.weights.validated_on

    @property
    def bits(self) -> int:
        """Significant bits of the 16-bit images that the pre-trained model was trained on."""
        return 0 if self.weights is None else self.weights.bits

    def measured(self, images: ImageSet) -> Start:
        """Return the start with the mean and deviation of these images, if a random network needs them."""
        if self.weights is not None:
            return self
        encoder = with_statistics(self.architecture.encoder, images)
        return replace(self, architecture=replace(self.architecture, encoder=encoder))

    def described(self, encoder: EncoderOptions | None) -> EncoderOptions:
        """Return the encoder for the configuration of a run, which also names the file of its weights."""
        return replace(self.architecture.encoder, weights=None if encoder is None else encoder.weights)

    def build(self, classes: int) -> Classifier:
        """Build the classifier on the CPU; weights that are not pre-trained are random, its linear layer is zero."""
        classifier = self.architecture.build(classes)
        if self.weights is not None:
            classifier.encoder.load_state_dict(self.weights.encoder.state_dict())
            if self.weights.head is not None:
                head = self.weights.head.first_layers(self.architecture.from_layer)
                classifier.neck.load_state_dict(head.state_dict())
        return classifier


def open_start(model: str, *, encoder: EncoderOptions | None, from_layer: int, image_size: int | None) -> Start:
    """Open the network that training starts from.

    Args:
        model: A pre-trained run folder or model folder; or ``none`` for random weights.
        encoder: Network, if `model` is ``none``; otherwise it is the model's.
        from_layer: Number of layers of the model's projection head to keep.
        image_size: Side of the images in pixels; None for the model's, or 32.

    Raises:
        UserError: There is no model, the encoder differs from the model's, or its head does not have that layer.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size is {image_size}; expected a number of pixels")
    if model == NONE and encoder is not None and encoder.weights is not None and not from_layer:
        pretrained = _open_named(encoder, image_size=image_size)
        return Start(Architecture(pretrained.options, pretrained.image_size), pretrained)
    if model == NONE:
        if from_layer:
            raise UserError(f"from_layer is {from_layer}, but without a pre-trained model there is no head; expected 0")
        return Start(Architecture(encoder or EncoderOptions(), image_size or 32))
    pretrained = load_pretrained(model)
    if encoder is not None and encoder != pretrained.options:
        raise UserError(
            f"{model}: {_difference(pretrained.options, encoder)}; leave out the encoder, or start from {NONE!r}"
        )
    layers = 0 if pretrained.head is None else len(pretrained.head.layers)
    if not 0 <= from_layer <= layers:
        raise UserError(
            f"from_layer is {from_layer}, but {model} has a projection head of {layers} layers; expected 0 (the "
            f"encoder's features) to {layers}"
        )
    size = image_size or pretrained.image_size
    if pretrained.head is None or from_layer == 0:
        return Start(Architecture(pretrained.options, size), pretrained)
    return Start(Architecture(pretrained.options, size, (layers, pretrained.head.out_features), from_layer), pretrained)
