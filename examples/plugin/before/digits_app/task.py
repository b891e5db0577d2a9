"""The app's own records, model and training."""

import torch
from flwr.app import Context
from sklearn.datasets import load_digits
from torch import nn

Records = tuple[torch.Tensor, torch.Tensor]


class Net(nn.Module):
    """A small network for images of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 10) of images (batch, 1, 8, 8)."""
        return self.layers(images)


def load_data(context: Context) -> tuple[Records, Records]:
    """Return a node's records to train on and to test on: pixels from 0 to 1, and labels."""
    index, count = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    digits = load_digits()
    images = torch.tensor(digits.images[index::count, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target[index::count])
    cut = len(labels) * 4 // 5
    return (images[:cut], labels[:cut]), (images[cut:], labels[cut:])


def fit(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Train for one pass over the records, and return the last loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for chosen in torch.randperm(len(labels)).split(32):
        loss = nn.functional.cross_entropy(net(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@torch.no_grad()
def accuracy(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of records that get their label."""
    return (net(images).argmax(dim=1) == labels).float().mean().item()
