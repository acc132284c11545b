"""Self-training: pseudo-labels in rounds, and the losses on unlabelled slices."""
