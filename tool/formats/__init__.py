"""File formats, each with one reader and one writer."""
