"""Labels for training: class-balanced draws, label files, and the subsets that they define."""
