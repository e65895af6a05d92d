"""Training methods: pure functions from variables, a batch and a key to a loss and its metrics."""
