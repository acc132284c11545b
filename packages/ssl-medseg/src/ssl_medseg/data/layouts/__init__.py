"""How data sets lie on disk: one file for each layout, which lists what is there and judges nothing."""
