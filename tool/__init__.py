"""Task-independent parts; they know nothing of the folders above them."""
