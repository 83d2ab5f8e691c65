"""Owns the flights: schedule, fares, free seats, and routes with connections."""
