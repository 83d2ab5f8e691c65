"""Flights and their passengers, imported or booked, and their entitlements."""
