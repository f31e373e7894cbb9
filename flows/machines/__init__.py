"""Workers and the servers of one machine."""
