\set customer random(1, :customers)
\set number random(1, 1000000)
BEGIN;
SELECT balance, changes, email FROM customers WHERE customer = :customer;
SELECT miles FROM frequent_flyers WHERE customer = :customer;
UPDATE customers SET email = 'c' || :number || '@passengers.example', changes = changes + 1 WHERE customer = :customer;
COMMIT;
