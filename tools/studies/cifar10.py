"""Score a pre-training run on CIFAR-10, the runs of other libraries, and baselines.

    ssl-vision pretrain cifar10 --out runs/ours --config simclr-cifar10-cpu
    python -m tools.studies.peers lightly --data cifar10/train --out runs/lightly --precision bf16
    python -m tools.studies.peers solo-learn --source solo-learn --data cifar10/train --out runs/solo --precision bf16
    python -m tools.studies.cifar10 --data cifar10 --run runs/ours --lightly runs/lightly --solo-learn runs/solo \
        --out docs/results/peers.json

The scores are the linear and nearest-neighbour accuracy of every saved epoch (epoch 0 is the untrained network), of raw
pixels, and of the encoders trained by `tools/studies/peers.py`. Test images are used only here.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from contrastive_core.training.model_file import save_model
from ssl_vision.data import open_images
from ssl_vision.evaluation.features import labelled_features
from ssl_vision.evaluation.probes import Cached, fit_linear, knn_scores
from ssl_vision.evaluation.scores import accuracy
from ssl_vision.models import EncoderOptions, resnet
from ssl_vision.models.model_folder import load_encoder
from tools.results import provenance, write_result

PEER_WIDTH = 0.25


class NormalisedResNet(nn.Module):
    """Encoder of another library, preceded by the input normalisation of its transform."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.backbone = resnet(18, width=PEER_WIDTH, stem="cifar")
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(normalize(images, self.mean, self.std))
        return features


def lightly_encoder() -> nn.Module:
    """Build an encoder with the normalisation of lightly's transform, the mean and deviation of ImageNet."""
    return NormalisedResNet([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def solo_learn_encoder() -> nn.Module:
    """Build an encoder with the normalisation of solo-learn's transform, the mean and deviation of CIFAR-10."""
    return NormalisedResNet([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])


PEERS = {"lightly": "lightly_encoder", "solo-learn": "solo_learn_encoder"}


def as_model_folder(weights: Path, encoder: str) -> Path:
    """Write the weights of another library to a model folder that `ssl-vision` can open."""
    tensors = {f"encoder.module.backbone.{name}": tensor for name, tensor in load_file(weights).items()}
    options = EncoderOptions(name=f"tools.studies.cifar10:{encoder}", width_multiplier=1.0, stem="cifar", sk_ratio=0.0)
    metadata = {"format": "ssl-vision encoder 1", "encoder": asdict(options), "image_size": 32, "epoch": 0}
    return save_model(weights.with_suffix(""), tensors, metadata)


def score(model: str, data: str, linear_epochs: int) -> tuple[float, float]:
    """Compute linear and kNN accuracy in percent, from features of whole images that are computed only once."""
    encoder = load_encoder(model)
    train, test = (labelled_features(encoder, data, split=split, batch_size=512) for split in ("train", "test"))
    width, classes = train.features.shape[1], len(train.classes)
    source = Cached(train.features)
    with torch.no_grad():
        votes = knn_scores(test.features, train.features, train.labels, num_classes=classes, k=200, temperature=0.1)
    classifier = fit_linear(
        source, train.labels, classes, features=width, epochs=linear_epochs, batch_size=512, lr=0.1, seed=0
    )
    with torch.no_grad():
        logits = classifier(test.features)
    by_linear, by_knn = (
        accuracy("", scores, test.labels, model=model, encoder_hash="", data=data, settings={}).top1
        for scores in (logits, votes)
    )
    return by_linear, by_knn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--run", type=Path, required=True)
    for peer in PEERS:
        parser.add_argument(f"--{peer}", dest=peer, type=Path, help=f"output folder of tools/studies/peers.py {peer}")
    parser.add_argument("--linear-epochs", type=int, default=90)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    config = yaml.safe_load((arguments.run / "config.yaml").read_text())
    models = {"raw pixels": "pixels"}
    for folder in sorted((arguments.run / "models").glob("epoch-*")):
        epoch = int(folder.name.removeprefix("epoch-"))
        models[f"ssl-vision, {epoch} epochs" if epoch else "untrained network"] = str(folder)
    models[f"ssl-vision, {config['training']['epochs']} epochs"] = str(arguments.run)
    for peer, encoder in PEERS.items():
        peer_folder = getattr(arguments, peer)
        for weights in sorted(peer_folder.glob("encoder-epoch-*.safetensors") if peer_folder else ()):
            epoch = int(weights.stem.removeprefix("encoder-epoch-"))
            if epoch:
                models[f"{peer}, {epoch} epochs"] = str(as_model_folder(weights, encoder))
    seen = len(open_images(arguments.data, split="train"))
    images = seen - seen % config["training"]["batch_size"]
    rows: list[list[str | float]] = []
    for name, model in models.items():
        print(f"{name}: ", end="", flush=True)
        by_linear, by_knn = score(model, arguments.data, arguments.linear_epochs)
        print(f"linear {by_linear:.2f} %, kNN {by_knn:.2f} %", flush=True)
        rows.append([name, round(by_linear, 2), round(by_knn, 2)])
    write_result(
        arguments.out,
        {
            "name": arguments.out.stem,
            **provenance(),
            "seeds": [config["run"]["seed"]],
            "config": config,
            "table": {"columns": ["encoder", "linear top-1 %", "kNN top-1 %"], "rows": rows},
            "notes": [
                "10,000 test images; linear: 90 epochs on features computed once, without augmentation; kNN: k = 200, "
                "temperature 0.1. One seed.",
                f"An epoch has {images:,} images with two views each. The other libraries (lightly 1.6.0, solo-learn "
                "9187ea3) use their own transform, head, loss and optimiser recipe for CIFAR-10, with our encoder, "
                "batch size and number of steps. The table therefore compares recipes; in such short runs, a "
                "temperature or a learning rate can make the difference.",
            ],
        },
    )


if __name__ == "__main__":
    main()
