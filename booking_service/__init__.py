"""Bookings: seats that are held for a party and confirmed once they are paid."""
