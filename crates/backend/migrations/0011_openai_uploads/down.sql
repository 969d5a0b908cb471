DROP TABLE openai_upload_parts, openai_uploads;
