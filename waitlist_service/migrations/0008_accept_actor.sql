-- Who accepted an offer: an agent may do it for the passenger. The timer that confirms the seat after a crash writes this
-- name into the history.
ALTER TABLE entries ADD COLUMN accept_actor text;
