"""Registered versions: register, move aliases, rebuild."""
