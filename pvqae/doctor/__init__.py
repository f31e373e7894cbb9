"""What is installed, what this machine offers, how the project is; what is wrong, and the repair."""
