"""Directories of weights as Hugging Face and PEFT write them: reading and writing."""
