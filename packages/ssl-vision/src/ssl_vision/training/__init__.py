"""Training: settings, loading of augmented views, optimiser and schedule, validation."""
