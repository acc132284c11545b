"""The generator of the reference pages under docs/."""
