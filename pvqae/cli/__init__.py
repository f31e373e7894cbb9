"""The command `pvqae`."""
