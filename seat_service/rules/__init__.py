"""The rules that a hold must meet: entitlement, eligibility and limits."""
