"""The state machine of holds and seats: all guarded writes, and their ledger."""
