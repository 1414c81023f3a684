"""Small methods and batches that the tests of the networks share."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from network.contrast.cells import Cells
from network.methods import Method, build_method, trained_names
from tool.progress import Progress

METHODS = trained_names()
SIDE = 64


def make_method(
    name: str, *, num_classes: int = 5, pretrained: bool = False, **config: Any
) -> Method:
    """A method on the slim backbone; its weights depend on nothing but the arguments."""
    method = build_method(
        {
            "method": name,
            "backbone": "resnet38d_slim",
            "output_stride": 8,
            "num_classes": num_classes,
            "pretrained": pretrained,
            "method_config": config,
        }
    )
    if "label" in method.inputs:
        method.study(torch.eye(num_classes))
    return method


def map_channels(method: Method) -> int:
    """C of the maps."""
    return method.num_classes + method.has_background


def of_inference(method: Method, batch: dict, images: int = 1) -> dict:
    """What `score` and `merge` get of a batch, of its first images, beside the images."""
    return {key: batch[key][:images] for key in method.infer_inputs if key != "image"}


def make_batch(label: list[list[int]] | Tensor, *, side: int = SIDE, seed: int = 0) -> dict:
    """A batch of noise for these labels (N, K); all else shows squares."""
    label = torch.as_tensor(label, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    images = len(label)
    saliency = 0.1 * torch.rand(images, 1, side, side, generator=generator)
    saliency[:, :, side // 4 : side // 2, side // 4 : side // 2] += 0.8
    seed_mask = torch.full((images, side, side), 255)
    seed_mask[:, side // 2 :] = 0
    present = torch.where(label.amax(dim=1) > 0, label.argmax(dim=1) + 1, 0)
    seed_mask[:, side // 8 : side // 2, side // 8 : side // 2] = present[:, None, None]
    return {
        "image_id": [f"image {i}" for i in range(images)],
        "image": torch.randn(images, 3, side, side, generator=generator),
        "label": label,
        "saliency": saliency,
        "valid": torch.ones(images, 1, side, side, dtype=torch.bool),
        "seed": seed_mask,
        "mask": torch.where(saliency[:, 0] > 0.5, present[:, None, None], 0),
        "boundary": torch.where(seed_mask == 255, 255, seed_mask > 0).to(torch.uint8),
        "cam": label[:, :, None, None] * F.avg_pool2d(saliency, 4),
    }


ONE_CLASS = [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]
MIXED = [[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [1, 1, 0, 0, 1], [0, 0, 0, 0, 1]]


def first_steps(method: Method, batch: dict, steps: int = 2) -> dict[str, Tensor]:
    """The terms of step `steps` - 1; what a method leaves pending is written after each."""
    for step in range(steps):
        progress = Progress(step=step, steps=10, seed=1)
        terms = method(method.before_losses(batch, progress), progress)
        method.after_step(progress)
    return terms


def gradients(value: Tensor, method: Method) -> dict[str, Tensor]:
    """Name -> gradient of `value`, of the parameters it reaches at all."""
    names, parameters = zip(
        *[(n, p) for n, p in method.named_parameters() if p.requires_grad], strict=True
    )
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def make_cells(
    pseudo: list[list[int]] | Tensor,
    *,
    num_classes: int,
    width: int = 6,
    score: Tensor | None = None,
    embedding: Tensor | None = None,
    prototype: Tensor | None = None,
    seed: int = 0,
) -> Cells:
    """Cells of one row an image with these pseudo labels; what is not given is noise."""
    pseudo = torch.as_tensor(pseudo)
    generator = torch.Generator().manual_seed(seed)
    cells = pseudo.numel()
    flat = pseudo.flatten()
    if score is None:
        score = torch.rand(cells, generator=generator) * 0.8 + 0.2
    if embedding is None:
        embedding = torch.randn(cells, width, generator=generator)
    if prototype is None:
        prototype = torch.randn(num_classes + 1, embedding.shape[1], generator=generator)
    valid = torch.tensor([bool((flat == k).any()) and k > 0 for k in range(num_classes + 1)])
    score = score.flatten() * (flat > 0)
    inside = torch.ones(cells, dtype=torch.bool)
    return Cells(embedding, score, flat, len(pseudo), prototype * valid[:, None], valid, inside)


@functools.cache
def second_step(name: str) -> tuple[Method, dict[str, Tensor]]:
    """A method and its terms of the second step: from then on a bank is filled."""
    method = make_method(name).train()
    return method, first_steps(method, make_batch(MIXED))


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two vectors."""
    return (a @ b / (a.norm() * b.norm())).item()
