"""The only importers of outside clients. Each has a twin in memory for tests."""
