-- Guests of one address who together hold more seats than the seat service lets them.
ALTER TYPE incident_kind ADD VALUE 'ADDRESS_HOARDING';
