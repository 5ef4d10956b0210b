"""What adam_table.py trains: a small GPT on text, and a small vision transformer on images.

A workload has a model, batches that depend on the seed alone, a loss, and a validation loss.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

import adam_simulation as simulation
import torch
import torch.nn.functional as F
from adam_simulation import CONTEXT, HEADS, LAYERS, VOCABULARY, WIDTH
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the example that reads the images

CLASSES = 10
PATCH = 7  # pixels on a side: so 16 patches per image


class Workload(Protocol):
    def model(self) -> nn.Module: ...

    def batch(self, shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the shape (ranks, samples, ...)."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor: ...

    def validate(self, model: nn.Module) -> float:
        """Return the loss on data that was not trained on."""


class Characters:
    """The model and the text of adam_simulation.py. A sample is a sequence of 32 characters."""

    def __init__(self) -> None:
        self.text, self.held_out = simulation.read_text()

    def model(self) -> nn.Module:
        return initialised(Gpt())

    def batch(self, shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return simulation.batch(self.text, shape, generator)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def validate(self, model: nn.Module) -> float:
        x, y = simulation.batch(self.held_out, (1, 1024), torch.Generator().manual_seed(7))
        parts = zip(x[0].split(256), y[0].split(256), strict=True)
        return sum(self.loss(model(a), b).item() for a, b in parts) / 4


class Images:
    """Fashion-MNIST, as Debian's package dataset-fashion-mnist installs it. A sample is an image."""

    def __init__(self) -> None:
        from fashion_mnist import DATA, dataset

        self.train, self.held_out = (dataset(DATA, part, None).tensors for part in ("train", "t10k"))

    def model(self) -> nn.Module:
        return initialised(Vit())

    def batch(self, shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        where = torch.randint(len(self.train[0]), shape, generator=generator)
        return self.train[0][where], self.train[1][where]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> float:
        parts = zip(self.held_out[0].split(500), self.held_out[1].split(500), strict=True)
        losses = [self.loss(model(a), b).item() for a, b in parts]
        return sum(losses) / len(losses)


WORKLOADS = {"text": Characters, "images": Images}


class Block(nn.Module):
    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        count, context, width = h.shape
        heads = self.attention(self.norm1(h)).view(count, context, 3, HEADS, width // HEADS)
        attended = F.scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4), is_causal=self.causal)
        h = h + self.out(attended.transpose(1, 2).reshape(count, context, width))
        return h + self.down(F.gelu(self.up(self.norm2(h))))


class Gpt(nn.Module):
    """As in nanoGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block(causal=True) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(x) + self.position)))


class Vit(nn.Module):
    """As in Dosovitskiy et al. 2021, with the mean over patches in place of a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(PATCH * PATCH, WIDTH)
        self.position = nn.Parameter(torch.zeros((28 // PATCH) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block(causal=False) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Take bytes of the shape (images, 1, 28, 28)."""
        patches = F.unfold(images / 255 - 0.286, PATCH, stride=PATCH).transpose(1, 2)  # 0.286: the mean of all pixels
        return self.head(self.norm(self.blocks(self.patches(patches) + self.position)).mean(1))


def initialised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    return model
