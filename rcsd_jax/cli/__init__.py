"""Flags and config files."""
