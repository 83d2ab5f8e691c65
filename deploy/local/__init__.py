"""The stack on one machine: private servers, the services and the gateway, kept running by one supervisor."""
