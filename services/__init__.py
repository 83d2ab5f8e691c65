"""The chassis that all services share: server, database, events, timers, authorization and clients."""
