"""A run as one HTML file: its scores, its curves, and its completions token by token."""
