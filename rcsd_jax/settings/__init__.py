"""The keys of a config, their defaults and checks."""
