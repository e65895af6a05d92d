"""Sources of examples (JSONL, Parquet, the hub, TFDS), and the order in which a run sees them."""
