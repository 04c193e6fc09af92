"""Run studies: many trainings and evaluations of bundles, and the tables and pictures of them."""
