"""Import checkpoints of other programs as networks of this package, without running code that they contain."""
