"""The stack on one machine: servers, services and gateway under one supervisor."""
