DROP TABLE estimates;
