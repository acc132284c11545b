"""Optical flow: methods, computation for whole videos, and its cache on disk."""
