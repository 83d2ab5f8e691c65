"""The seat service: owns the seats of all flights, their timed holds, maps and ledger."""
