"""The state machine of check-ins: all writes on `check_ins`, and their rules."""
