"""Export segmenters to other programs, and compare every export with the model before it replaces anything."""
