"""Evaluation: features of frozen networks, probes, scores and predictions."""
