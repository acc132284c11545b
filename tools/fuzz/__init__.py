"""Read damaged files with every reader and count what goes wrong."""
