DROP TABLE openai_jobs, openai_files;
ALTER TABLE training_jobs DROP COLUMN validation_dataset_id;
