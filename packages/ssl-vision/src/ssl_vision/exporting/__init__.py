"""Models of ours as files that other programs open, each compared with the model before it is put in place."""
