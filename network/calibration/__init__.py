"""The parts of SFC: a bank of images, and the calibration of two kinds of CAMs by each other."""
