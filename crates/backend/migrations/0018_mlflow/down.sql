DROP TABLE mlflow_runs;
