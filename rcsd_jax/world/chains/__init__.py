"""A longer world: chains of 8 to 16 small steps, in which an author may take a wrong turn, notice it and repair it."""
