"""Owns the seats of all flights: inventory, timed holds, maps and the ledger."""
