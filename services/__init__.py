"""The chassis: the code that all services share."""
