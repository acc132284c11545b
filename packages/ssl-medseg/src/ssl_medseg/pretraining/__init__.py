"""Pre-training without labels (Chaitanya et al. 2020)."""
