"""Where examples come from (JSONL files, TFDS), and in which order a run sees them."""
