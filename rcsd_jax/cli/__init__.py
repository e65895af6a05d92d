"""Flags, config files by name, the start of a job and the end of a program."""
