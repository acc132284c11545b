"""Fixtures of the medseg tests."""
