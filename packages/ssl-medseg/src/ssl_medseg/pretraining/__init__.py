"""Pre-train without labels (Chaitanya et al. 2020)."""
