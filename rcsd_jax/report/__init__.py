"""A run as one HTML file: what it scored, how it got there, and its completions token by token."""
