"""Load weights from local files into timm, torchvision or custom networks, by the names of the tensors."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from contrastive_core.errors import UserError
from contrastive_core.text import some_of
from contrastive_core.training.weights import below_prefix, plain_name, read_tensors
from ssl_vision.models.encoder import EncoderOptions, build_encoder, core_network, default_image_size, timm_statistics

#: Names of a second network in a file: a momentum encoder, a teacher.
SECOND = re.compile(r"momentum|encoder_k|_k\.|key_|target|ema|teacher_|avg_|averaged")

_LISTED = 4


def load_weights(
    options: EncoderOptions, *, image_size: int | None = None, prefix: str = ""
) -> tuple[nn.Module, EncoderOptions, int, list[str]]:
    """Build the encoder that the options name, with the weights in `options.weights`.

    If the options state no normalisation, that of the network's library is used: the model's configuration in timm, or
    ImageNet's statistics for torchvision. A classifier in the file is ignored.

    Args:
        options: Encoder and file.
        image_size: Side of the images in pixels; None: the size that the network was designed for.
        prefix: Prefix of the network's names, if the file contains several networks of this kind.

    Returns:
        The encoder, the options that build it again without the file, the side of its images, and notes on the choice
        among several networks.

    Raises:
        UserError: The file cannot be read without running code, or contains other weights or several networks.
    """
    if options.weights is None:
        raise UserError("no initial weights are given; expected a file (--encoder.weights)")
    size = image_size or default_image_size(options)
    network_options = replace(options, weights=None)
    if options.normalize == "none" and not options.mean and options.image_channels == 3:
        if options.name.startswith("timm:"):
            mean, std = timm_statistics(options.name.removeprefix("timm:"))
            network_options = replace(network_options, normalize="data", mean=mean, std=std)
        elif options.name.startswith("torchvision:") or options.variant == "torchvision":
            network_options = replace(network_options, normalize="imagenet")
    encoder = build_encoder(network_options, image_size=size)
    net = core_network(encoder)
    state, notes = match_names(
        read_tensors(Path(options.weights)), net, options.weights, prefix=prefix, note_resampling=image_size is None
    )
    net.load_state_dict(state)
    return encoder.eval(), network_options, size, notes


def channels_in(options: EncoderOptions, *, prefix: str = "") -> int:
    """Return the number of channels for which the network in `options.weights` was trained, by its first convolution.

    Returns:
        The number in the options, if the file does not contain the convolution of this network in any width.
    """
    if options.weights is None or ":" not in options.name:
        return options.image_channels
    net = core_network(build_encoder(replace(options, weights=None), image_size=default_image_size(options)))
    first = next((name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None:
        return options.image_channels
    name, shape = f"{first}.weight", net.get_parameter(f"{first}.weight").shape
    start = f"{plain_name(prefix.rstrip('.'))}." if prefix else ""
    channel_counts = {
        tensor.shape[1]
        for key, tensor in read_tensors(Path(options.weights)).items()
        if key.startswith(start) and (key == name or key.endswith(f".{name}"))
        if tensor.shape[:1] + tensor.shape[2:] == shape[:1] + shape[2:]
    }
    return channel_counts.pop() if len(channel_counts) == 1 else options.image_channels


def match_names(
    tensors: Mapping[str, Tensor], net: nn.Module, source: Path, *, prefix: str = "", note_resampling: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """Find the tensors of a network among those of a file, under a given prefix or any.

    Names are those of the network after a common prefix (``backbone.``, ``model.``); a timm network can have a function
    that translates the names of other releases and resamples position embeddings. Of a network and its moving average,
    the network itself is taken, and a note names the other. With `note_resampling`, resampled tensors are noted, too.

    Raises:
        UserError: Tensors are missing, or have other shapes, or there are several such networks.
    """
    expected = net.state_dict()
    if prefix:
        below = below_prefix(tensors, f"{plain_name(prefix.rstrip('.'))}.")
        if not below:
            starts = sorted({name.partition(".")[0] for name in tensors})
            raise UserError(f"{source}: no tensor has the prefix {prefix!r}; names begin with {some_of(starts)}")
        tensors = below
    prefixes = ["", *_prefixes(tensors, expected)]
    candidates = {start: below_prefix(tensors, start) for start in prefixes}
    translate = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    states = [*candidates.values(), *(joined for names in candidates.values() if (joined := _joined_chunks(names)))]
    translations: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    if translate is not None and type(net).__module__.startswith("timm."):
        translations = [(names, translation) for names in states if (translation := _translated(translate, names, net))]
        states += [translation for _, translation in translations]

    def fitting(state: Mapping[str, Tensor]) -> int:
        return sum(name in state and state[name].shape == tensor.shape for name, tensor in expected.items())

    best = max(states, key=fitting)
    notes = _alternatives({start: fitting(state) for start, state in candidates.items()}, source)
    if note_resampling:
        notes += next(
            (_resampled(names, translation) for names, translation in translations if translation is best), []
        )
    counters = {name: tensor for name, tensor in expected.items() if name.endswith("num_batches_tracked")}
    state = counters | {name: best[name] for name in expected if name in best}
    missing = [name for name in expected if name not in state]
    shapes = [
        f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ] + integers_for_floats(state, expected)
    if missing or shapes:
        problems = [f"{name} is missing" for name in missing] + shapes
        more = f" and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise UserError(
            f"{source}: does not contain the weights of {type(net).__name__} with these settings: "
            f"{'; '.join(problems[:_LISTED])}{more}. It contains {', '.join(list(tensors)[:_LISTED])}, ...; expected a "
            f"state dict of the network given by encoder.name{_foreign(tensors)}"
        )
    return state, notes


def _joined_chunks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the number of the chunk in names of blocks, ``blocks.0.3.`` as in DINOv2, if any."""
    if not any(_CHUNK.search(name) for name in tensors):
        return {}
    return {_CHUNK.sub(r"\1blocks.\2.", name): tensor for name, tensor in tensors.items()}


_CHUNK = re.compile(r"(^|\.)blocks\.\d+\.(\d+)\.")


def integers_for_floats(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Describe weights that were quantised to integers, which mean nothing without their scales."""
    return [
        f"{name} is {state[name].dtype}, expected floating-point numbers"
        for name, tensor in expected.items()
        if name in state and tensor.is_floating_point() and not state[name].is_floating_point()
    ]


def _resampled(names: Mapping[str, Tensor], translation: Mapping[str, Tensor]) -> list[str]:
    """Return a note on tensors that were resampled for another image size."""
    changes = [
        f"{name} was resampled from {list(names[name].shape)} to {list(tensor.shape)}"
        for name, tensor in translation.items()
        if name in names and names[name].shape != tensor.shape and "pos" in name
    ]
    return [f"{', '.join(changes)}: the file is for another image size, which --image-size can set"] if changes else []


def _foreign(tensors: Mapping[str, Tensor]) -> str:
    """Return a hint if names are those of Hugging Face transformers."""
    if any(re.search(r"\.attention\.attention\.|(^|\.)embeddings\.|embedder\.", name) for name in tensors):
        return ". These are the names of Hugging Face transformers; most of these models are also published for timm"
    return ""


def _alternatives(fitting: Mapping[str, int], source: Path) -> list[str]:
    """Return a note on the networks that fit as well as the first one, by prefix.

    Raises:
        UserError: One that is no moving average or second network by name is among them.
    """
    most = max(fitting.values())
    prefixes = [prefix for prefix, count in fitting.items() if count == most > 0]
    first = [prefix for prefix in prefixes if not SECOND.search(prefix)]
    names = ", ".join(map(repr, prefixes))
    if len(first) > 1:
        raise UserError(
            f"{source} contains several networks of this kind, under {names}; choose one with `ssl-vision "
            f"import-checkpoint FILE OUT --architecture NAME --prefix PREFIX`{teacher_hint(first)}"
        )
    return [second_network(prefixes[0], prefixes[1:])] if len(prefixes) > 1 else []


def teacher_hint(prefixes: Sequence[str]) -> str:
    """Return which of a student and a teacher to choose, or nothing."""
    return "; DINO and similar methods evaluate the teacher" if any("teacher" in prefix for prefix in prefixes) else ""


def second_network(choice: str, others: Sequence[str]) -> str:
    """Describe the choice of a network among several in a file, by their prefixes."""
    other_list = ", ".join(map(repr, others))
    return (
        f"the file contains several networks; the one under {choice!r} is used, and not the one under {other_list}, "
        "which import-checkpoint --prefix selects"
    )


def _prefixes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes under which tensors of the network are found; those of averages and second networks last."""
    prefixes: dict[str, None] = {}
    for name in list(expected)[:_LISTED]:
        prefixes |= {key[: -len(name)]: None for key in tensors if key.endswith(f".{name}")}
    return sorted(prefixes, key=lambda prefix: bool(re.search(SECOND, prefix)))


def _translated(translate: object, tensors: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    try:
        state = translate(dict(tensors), net)  # type: ignore[operator]
    except Exception:  # noqa: BLE001 - the names are those of another network
        return {}
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
