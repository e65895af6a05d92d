"""The decoder, its sharding, LoRA, and Hugging Face directories."""
