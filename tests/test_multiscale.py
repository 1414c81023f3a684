"""Pairs of images and mirrors, normalised on the device."""

from __future__ import annotations

import torch

from tool.infer.multiscale import network_input


def test_each_image_is_followed_by_its_mirror() -> None:
    image = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pairs = network_input(image, mean, std)
    assert pairs.shape == (4, 3, 5, 7)
    assert pairs.is_contiguous(memory_format=torch.channels_last)
    expected = (image / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(pairs[::2], expected)
    assert torch.equal(pairs[1::2], pairs[::2].flip(-1))
