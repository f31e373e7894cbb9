"""What a network reads of an image: frozen features, targets, richness."""
