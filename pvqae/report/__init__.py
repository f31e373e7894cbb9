"""One HTML page per dataset, without a network."""
