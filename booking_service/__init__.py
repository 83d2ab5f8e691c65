"""Bookings: seats for a party, held for a while, and theirs once they are paid."""
