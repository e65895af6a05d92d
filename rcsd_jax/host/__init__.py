"""Files, processes, the console and errors: what a program needs of its machine. Nothing here knows of models."""
