"""Read damaged files with every reader and count the failures."""
