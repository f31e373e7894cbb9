"""The command `python -m flows`."""
