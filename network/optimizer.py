"""The optimizer of a method, as its recipe says; the schedule is in `tool.train.engine`."""

from __future__ import annotations

import torch

from network.method import Method
from network.recipe import Recipe


def build_optimizer(method: Method, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Return the recipe's optimizer; each group notes its initial rate for the schedule."""
    groups, fused = method.param_groups(recipe.lr, recipe.weight_decay), device.type == "cuda"
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if recipe.optimizer in kinds:
        optimizer = kinds[recipe.optimizer](groups, fused=fused)
    else:
        optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, fused=fused)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
