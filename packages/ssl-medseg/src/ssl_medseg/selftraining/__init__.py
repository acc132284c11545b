"""Self-training: pseudo-labels of a round, their checks, pairs of slices for the contrastive loss."""
