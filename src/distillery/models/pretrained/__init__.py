"""Weights that were not trained here: from a file or a hub to a state dict with this project's names."""
