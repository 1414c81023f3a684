"""File formats: one writer and one reader each, which every stage uses.

The threat model of files from elsewhere, said once. A file may be written by someone who wants to
run code here, or be damaged in any way. The reader trusts nothing in it: it runs no name that the
file gives, follows no path in it, and answers anything unexpected with a `ValueError` that names
the file. Pickles of NumPy arrays go through `npy`, whose names are stand-ins. `.pth` files go
through torch with `weights_only=True` (`checkpoint`, `beside`), and what comes back is checked to
be plain tensors no larger than the file. Who can write into the folders of this project, or replace
its packages, is trusted; and so is Pillow, the decoder of images.
"""
