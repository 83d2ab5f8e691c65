"""The state machine: every guarded write on `holds` and `seats`, one module for each transition, and their ledger."""
