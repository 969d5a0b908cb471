-- Live notifications. When a row was written says nothing about when it became visible, so its place in the stream of its
-- user is given afterwards, by whoever reads the stream: from 1, without gaps, in the order in which rows became visible.
ALTER TABLE notifications ADD COLUMN position bigint,
    ADD CONSTRAINT notifications_position_key UNIQUE (user_id, position);
CREATE INDEX notifications_unplaced_idx ON notifications (user_id) WHERE position IS NULL;

-- The payload is a user id, never content.
CREATE FUNCTION hone_notify_notifications() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('hone_notifications', added.user_id::text) FROM (SELECT DISTINCT user_id FROM new_rows) added;
    RETURN NULL;
END
$$;
CREATE TRIGGER notify AFTER INSERT ON notifications REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION hone_notify_notifications();
