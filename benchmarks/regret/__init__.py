"""How much faster some other configuration would have been than the one that was planned: measured on GPUs."""
