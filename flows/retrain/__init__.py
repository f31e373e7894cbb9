"""New images: decision, training, gate."""
