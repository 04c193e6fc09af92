"""What people run: the command `liverseg`, a module a verb."""
