"""Runs a config's own programs in small on the devices that are there, and says whether to trust them."""
