"""Batches, options and the network that is kept: what the training command is made of."""
