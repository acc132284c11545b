"""Fixtures of the video tests."""
