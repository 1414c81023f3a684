"""The parts of SFC: the image bank, and the two kinds of CAMs that calibrate each other."""
