"""The central classifier: class-balanced training, against a plain torch loop."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from cadp_fl.bench.contest import Benchmark, Contender, Contest, Setting
from cadp_fl.bench.flows import SHAPE, synthetic_records
from cadp_fl.classifier.models import build_classifier
from cadp_fl.classifier.training import train_class_balanced
from cadp_fl.config import CentralTrainingConfig, ClassifierConfig
from cadp_fl.device import reduced_precision

__all__ = ["CLASSIFIER_TRAINING"]

CLASSES = 10


def _training(setting: Setting) -> Contest:
    count, batch_size = (64, 32) if setting.quick else (1024, 128)
    images, labels = synthetic_records(count, CLASSES, torch.device("cpu"))
    central = CentralTrainingConfig(epochs=1, batch_size=batch_size, learning_rate=1e-3)
    config = ClassifierConfig(model="cnn", width=16, central=central)
    model, plain = (build_classifier(config, SHAPE, CLASSES, seed=3).to(setting.device) for _ in range(2))
    generator = torch.Generator().manual_seed(2)
    weights = 1.0 / torch.bincount(labels, minlength=CLASSES).double()
    sampler = WeightedRandomSampler(weights[labels].tolist(), count)
    batches = DataLoader(TensorDataset(images.float() / 255, labels), batch_size=batch_size, sampler=sampler)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=central.learning_rate, weight_decay=central.weight_decay)

    def ours() -> None:
        for _ in train_class_balanced(model, images, labels, central, checkpoints=1, generator=generator):
            pass

    def reference() -> None:
        with reduced_precision():
            for x, y in batches:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(plain(x.to(setting.device)), y.to(setting.device))
                loss.backward()
                optimizer.step()

    return Contest(Contender(count, ours), Contender(count, reference))


CLASSIFIER_TRAINING = Benchmark(
    title="train the central classifier: 28 x 28, 10 classes, cnn of width 16, batches of 128",
    reference="the same model in a DataLoader loop with a WeightedRandomSampler and AdamW",
    unit="images",
    prepare=_training,
)
