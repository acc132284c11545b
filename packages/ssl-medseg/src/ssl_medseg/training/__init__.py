"""Train segmenters: data of a split, batches of augmented slices, validation, optimiser."""
