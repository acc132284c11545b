"""Other programs' checkpoints: read without running what is in them, their weights under our names."""
