"""The seat service: owns seats, timed holds, seat maps and the ledger."""
