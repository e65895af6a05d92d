"""A run: from a config to a trained model in a folder."""
