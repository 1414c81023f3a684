"""Stage 2: scales and mirrors, files of previous stages, outputs."""
