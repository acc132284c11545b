"""Export segmenters to other programs; every export is compared with the model before it is put in place."""
