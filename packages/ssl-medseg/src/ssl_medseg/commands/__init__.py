"""The verbs of the command line, each a function with the same arguments."""
