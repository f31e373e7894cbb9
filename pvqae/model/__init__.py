"""The networks, each loading its own weights."""
