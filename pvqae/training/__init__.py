"""From normal images to a trained network and a budget prior."""
