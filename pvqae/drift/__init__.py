"""Whether scored images still look like the trusted normals."""
