"""Download released files, check them, and unpack them."""
