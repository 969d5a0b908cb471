DROP TABLE model_pulls;
