"""How sure the models are of each scan, and how good."""
