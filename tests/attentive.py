"""A small transformer for tests: one block of attention, its affinity, and a class token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.backbones import AFFINITY, Backbone, Tap

CLASSES = 5


class Attentive(Backbone):
    """Patches of 8 pixels; the affinity has rows of 12, less what the class token gets."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.taps = {name: Tap(width, 8) for name in ("low", "mid", "high")}
        self.taps |= {AFFINITY: Tap(1, 8), "token": Tap(width, 8)}
        self.stem = ("nothing.",)
        self.patch = nn.Conv2d(3, width, 8, stride=8)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.out = nn.Linear(width, width)

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """See `Backbone.forward`."""
        patches = self.patch(image)
        cells = torch.cat([self.token.expand(len(image), -1, -1), patches.flatten(2).mT], dim=1)
        attention = (4 * self.query(cells) @ self.key(cells).mT).softmax(dim=2)
        mixed = self.out(cells + attention @ cells)
        high = F.relu(mixed[:, 1:]).mT.unflatten(2, patches.shape[-2:])
        found = dict.fromkeys(("low", "mid", "high"), high)
        found |= {AFFINITY: 12 * attention[:, 1:, 1:], "token": mixed[:, 0]}
        return {name: found[name] for name in names}


def attentive(method: type, **config: object):
    """A method on it, whose weights depend on nothing but the arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return method(Attentive(), CLASSES, method.Config(**config), pretrained=False)
