"""Which scan to annotate next."""
