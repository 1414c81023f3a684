"""Backbones, heads, losses and contrast; one file a method in `network.methods`."""
