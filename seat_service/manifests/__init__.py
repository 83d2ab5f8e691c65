"""Passengers and departure times that the check-in service sends."""
