"""File formats: one writer and one reader each, which every stage uses.

The threat model of files from elsewhere. A file may come from someone who wants to run code here,
or may be damaged in any way. The reader trusts nothing in it. It calls no function that the file
names and opens no path that the file names. It answers anything unexpected with a `ValueError` that
names the file. Pickles of NumPy arrays go through `npy`, which replaces every name with a stand-in.
`.pth` files go through torch with `weights_only=True` (`checkpoint`, `beside`), and the content is
checked to be plain tensors no larger than the file. Trusted are anyone who can write into the
folders of this project or replace its packages, and Pillow, the decoder of images.
"""
