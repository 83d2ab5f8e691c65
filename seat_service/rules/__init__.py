"""The rules that a hold must meet: entitlement, eligibility, and the limits of held seats."""
