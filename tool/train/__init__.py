"""Stage 1: the training loop, its log and its run directory."""
