"""Backbones, heads, losses and contrast, and one file per method in `network.methods`."""
