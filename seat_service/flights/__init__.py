"""Changes of a whole flight: its seats, its waitlist, its cancellation."""
