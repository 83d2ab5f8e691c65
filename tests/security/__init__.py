"""The attacks of docs/security.md. A package, so that its fixtures end with its last test: the system that they start
takes the events of everybody's queues.
"""
