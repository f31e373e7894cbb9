"""Champion or not."""
