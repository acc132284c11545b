"""Sections and pictures of the report of a run."""
