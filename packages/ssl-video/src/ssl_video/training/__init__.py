"""Parts of the training command: batches, options and the inference network."""
