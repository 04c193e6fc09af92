"""The command `liverseg`, with a module for each verb."""
