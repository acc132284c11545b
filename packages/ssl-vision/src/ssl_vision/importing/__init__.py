"""Checkpoints of other programs, read without running code that they hold, as networks of this package."""
