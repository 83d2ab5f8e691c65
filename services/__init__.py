"""The chassis: what all services share, and not one word of the airline trade."""
