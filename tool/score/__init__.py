"""Stage 4: confusion counts, IoU, and the JSON document that reports them."""
