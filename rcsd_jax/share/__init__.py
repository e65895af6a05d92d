"""A trained model as a repository of the Hugging Face hub: its files, and a card that says what was done."""
