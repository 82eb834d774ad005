"""How many labels a pretraining saves: trainings on nested subsets, one fixed test set, tables and plots."""
