"""Baggage: its declaration, and what a fare includes and charges."""
