"""A person labels."""
