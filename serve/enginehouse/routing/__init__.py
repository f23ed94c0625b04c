"""Who answers: which backends a model has now, which is the best, and what happens when one fails."""
