"""A linear classifier on frozen features, and where its features come from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive_core.optim import WarmupCosine, scaled_lr
from contrastive_core.rng import derive
from contrastive_core.training import Batches
from ssl_vision.augment import CropFlip
from ssl_vision.data import ImageSet
from ssl_vision.model_folder import LoadedModel


class Cached:
    """Features computed once."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def batch(self, ids: Tensor, epoch: int) -> Tensor:
        return self.features[ids.to(self.features.device)]


class Augmented:
    """Features of freshly cropped and flipped images."""

    def __init__(self, model: LoadedModel, images: ImageSet, *, seed: int) -> None:
        self.model, self.images, self.seed = model, images, seed
        self.transform = CropFlip(model.image_size)

    @torch.no_grad()
    def batch(self, ids: Tensor, epoch: int) -> Tensor:
        seed = derive(self.seed, "crop", epoch)
        pictures = self.transform([self.images.read(int(i)) for i in ids], seed=seed, ids=ids)
        batch = pictures.to(self.model.device, memory_format=torch.channels_last)
        features: Tensor = self.model.encoder(batch).float()
        return features


Source = Cached | Augmented


def fit_linear(
    source: Source,
    labels: Tensor,
    num_classes: int,
    *,
    features: int,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> nn.Linear:
    """Fit the classifier of SimCLR's linear evaluation (Appendix B.6).

    Softmax cross-entropy, Nesterov momentum 0.9, learning rate ``lr * batch_size / 256`` with cosine decay to 0, no
    warm-up, no weight decay, weights from zero.

    Args:
        source: of the features of a batch.
        labels: ``[N]``.
        num_classes: outputs of the classifier.
        features: its inputs.
        epochs: passes; what does not fill a last batch is left out of an epoch.
        batch_size: samples per step.
        lr: per 256 samples.
        seed: of the order.
    """
    classifier = nn.Linear(features, num_classes).to(labels.device)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=lr, momentum=0.9, nesterov=True)
    steps_per_epoch = len(labels) // batch_size
    total_steps = epochs * steps_per_epoch
    peak = scaled_lr(lr, batch_size)
    schedule = WarmupCosine(optimizer, peak_lr=peak, warmup_steps=0, total_steps=total_steps)
    batches = Batches(len(labels), batch_size=batch_size, seed=derive(seed, "linear"), total_steps=total_steps)
    for step, indices in enumerate(batches):
        ids = torch.as_tensor(indices)
        logits = classifier(source.batch(ids, step // steps_per_epoch))
        loss = F.cross_entropy(logits, labels[ids.to(labels.device)])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return classifier
