"""Studies: many trainings and evaluations of the bundles, and the tables and pictures made of them."""
