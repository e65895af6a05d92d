"""What each role sees of a row."""
