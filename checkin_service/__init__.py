"""Owns who is on a flight, and how each of them becomes ready to board."""
