"""The keys of a config, and the values that they are unpacked into."""
