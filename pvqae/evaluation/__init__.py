"""From test images to metrics."""
