"""Reads of a flight's seats: maps, watches, counts and suggestions."""
