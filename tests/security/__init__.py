"""Tests of the attacks in docs/security.md.

This is a package so that its fixtures end with its last test. The system that they start consumes the events of the
shared queues.
"""
