-- Whether only services may confirm, extend, change or cancel a hold, and its owner may look at it (docs/decisions/0018).
ALTER TABLE holds ADD COLUMN managed boolean NOT NULL DEFAULT false;
