-- Preference pairs and labelled texts.
ALTER TABLE datasets DROP CONSTRAINT datasets_format_check;
ALTER TABLE datasets ADD CONSTRAINT datasets_format_check
    CHECK (format IN ('chat_jsonl', 'instruction_jsonl', 'preference_jsonl', 'labelled_jsonl', 'text'));
