"""The keys of a config, and the checked values that they are unpacked into."""
