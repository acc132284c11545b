"""Losses of segmentation."""
