"""Released files, fetched and checked."""
