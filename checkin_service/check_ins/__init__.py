"""The state machine of check-ins: every guarded write on `check_ins`, and the rules that start and price one."""
