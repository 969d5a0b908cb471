DROP TRIGGER notify ON notifications;
DROP FUNCTION hone_notify_notifications();
ALTER TABLE notifications DROP COLUMN position;
