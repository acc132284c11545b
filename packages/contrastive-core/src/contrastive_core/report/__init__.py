"""What reports of runs are made of: a page that asks nothing of the network, figures, curves. Needs matplotlib."""
