"""What happens to a whole flight: its seats are created, its waitlist opens or closes, it is cancelled."""
