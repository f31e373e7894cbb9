"""The budget prior: which allocation normal images get."""
