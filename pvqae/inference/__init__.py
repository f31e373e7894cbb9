"""The only path from an image to a score."""
