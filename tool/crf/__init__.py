"""Stage 3: the dense CRF, masks and confident seeds."""
