"""What the programs do besides the work itself: flags, config files by name, how a job starts and how a program ends."""
