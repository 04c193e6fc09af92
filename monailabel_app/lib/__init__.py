"""The parts of the MONAI Label app; `main.py` puts them together."""
