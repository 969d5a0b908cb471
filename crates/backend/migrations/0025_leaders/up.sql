-- Which of several backends sweeps and judges leases. One row at most, held until it expires.
CREATE TABLE leaders (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    holder uuid NOT NULL,
    expires_at timestamptz NOT NULL
);
-- No tenant has anything to do with it.
ALTER TABLE leaders ENABLE ROW LEVEL SECURITY;
ALTER TABLE leaders FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON leaders TO hone_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON leaders TO hone_system;
