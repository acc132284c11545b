"""Segmenters as files and bundles that other programs open, each compared with the model before it is put in place."""
