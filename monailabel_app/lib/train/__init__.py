"""One module for each kind of training, and what they learn from."""
