"""A small network with feature maps at strides 8, 16 and 32, and images for it."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from camworker.classes import Classes
from camworker.networks.gap import GapNetwork, Preprocessing
from camworker.networks.package import NetworkPackage
from camworker.schemas import Scoring

SIDE = 128


class _PooledLinear(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, features_BCHW: torch.Tensor) -> torch.Tensor:
        return self.linear(features_BCHW.mean((2, 3)))


def tapped_package(classes: int = 40, *, deep: int = 6, scoring: Scoring = "softmax") -> NetworkPackage:
    """Return a network with taps of 5 channels at stride 8 and of `deep` at stride 16, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(
            *(nn.Conv2d(3, 5, 8, stride=8), nn.ReLU()),
            *(nn.Conv2d(5, deep, 2, stride=2), nn.ReLU()),
            *(nn.Conv2d(deep, 8, 2, stride=2), nn.ReLU()),
        )
        head = _PooledLinear(8, classes)
    network = GapNetwork(
        nn.ModuleDict({"body": body, "head": head}),
        features=body,
        logits=head,
        classifier=head.linear,
        classes=classes,
        pooling="avg",
        preprocessing=Preprocessing(SIDE, (0.5,) * 3, (0.2,) * 3),
    )
    names = Classes(tuple(f"class {number}" for number in range(classes)))
    return NetworkPackage("tapped", network.eval(), names, network.preprocessing, scoring, "fingerprint")


def discs(folder: Path, count: int) -> Path:
    """Write images of a disc on a noisy background, different ones for each number."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:SIDE, :SIDE]
    for number in range(count):
        random = np.random.default_rng(number)
        centre_y, centre_x, radius = random.uniform([30, 30, 15], [98, 98, 40])
        pixels = random.integers(0, 90, (SIDE, SIDE, 3))
        pixels[(y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2] += random.integers(60, 160, 3)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:04d}.png")
    return folder
