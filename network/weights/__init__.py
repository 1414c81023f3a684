"""Weights that come from files: pretrained backbones, checkpoints, foreign networks."""
