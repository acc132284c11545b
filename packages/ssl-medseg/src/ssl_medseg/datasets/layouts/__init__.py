"""Layouts of data sets on disk: each lists the files that are there."""
