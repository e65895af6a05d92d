"""Directories of models and adapters, as Hugging Face and PEFT write them: read and written."""
