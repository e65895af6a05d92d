"""Runs that answer a question; each is a module with its own command line."""
