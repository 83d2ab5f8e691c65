"""Passenger sessions: the login, its limits, and the trip that it shows."""
