"""Masks of images nobody has labelled: which images, the network over their slices, and files."""
