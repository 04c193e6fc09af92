"""One module for each kind of inference."""
