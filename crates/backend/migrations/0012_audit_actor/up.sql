-- Whose thing it is and who did it differ when an administrator acts.
ALTER TABLE audit_log ADD COLUMN actor_id uuid CONSTRAINT audit_log_actor_fkey REFERENCES users (id);
CREATE INDEX audit_log_actor_idx ON audit_log (actor_id, id DESC);
