"""Random walks over affinities."""
