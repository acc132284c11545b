"""Losses of segmentation and of contrastive pre-training."""
