"""Passenger sessions: the login with a locator and a name, its limits, and the trip that it shows."""
