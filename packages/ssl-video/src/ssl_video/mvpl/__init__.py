"""Multiview pseudo-labelling (MvPL): the method, its losses and its running state."""
