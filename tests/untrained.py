"""Checkpoints without a training, of methods whose masks have several classes all the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from method_cases import make_method

from data.catalog import open_catalog
from tool.formats.checkpoint import save_checkpoint

SEGMENT = "trial_segment"  # infers without labels, K+1 rows


def untrained(name: str, root: Path, path: Path) -> Path:
    """Write a checkpoint of a method with random weights, for the classes of a dataset."""
    catalog = open_catalog("folder", root)
    method = make_method(name, num_classes=catalog.num_classes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        weight = method.classifier.weight
        weight.copy_(5 * torch.randn(weight.shape, generator=generator))
        weight -= weight.mean(dim=1, keepdim=True)  # no class wins by its sum
    config = {"method": name, "backbone": "resnet38d_slim", "output_stride": 8, "pretrained": False}
    config |= {"num_classes": catalog.num_classes, "class_names": list(catalog.class_names)}
    config |= {"method_config": {}}
    save_checkpoint(
        path, {"method": name, "model": method.state_dict(), "config": config, "step": 0}
    )
    return path


def without_labels(root: Path, to: Path) -> Path:
    """A copy of a dataset that has no image labels."""
    shutil.copytree(root, to, ignore=shutil.ignore_patterns("labels.csv"))
    return to
