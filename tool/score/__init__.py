"""Stage 4: confusion counts, IoU, and the document that reports them."""
