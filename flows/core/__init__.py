"""Pure values and the operating system: lineage, classes, locks, processes."""
