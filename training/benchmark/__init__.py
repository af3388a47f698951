"""Any model on any published split: fit, tune on the validation rows alone, rank everything, measure."""
