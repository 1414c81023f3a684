"""Maps of one image from a checkpoint."""
