"""From folders of images to a checked manifest."""
