"""Stage 2: several scales and mirrors of an image, files of previous stages, outputs."""
