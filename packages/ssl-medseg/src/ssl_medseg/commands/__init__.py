"""Commands of the command line, each available as a function with the same arguments."""
