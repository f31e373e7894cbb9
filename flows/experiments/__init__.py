"""The laboratory: named experiments, yardsticks and the accuracy table."""
