"""Pre-training without labels, the parent method: its networks, its batches, its views."""
