"""What each role sees of a row, as text and as tokens."""
