"""Flights and their passengers, as imported or booked, and the entitlements to seats that follow from them."""
