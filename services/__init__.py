"""The chassis that all services share: server, database, events and clients."""
