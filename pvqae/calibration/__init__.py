"""From normal images to a threshold and a bundle."""
