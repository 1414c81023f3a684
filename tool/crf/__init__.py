"""Stage 3: the dense CRF, pseudo masks and confident seeds."""
