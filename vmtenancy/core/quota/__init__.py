"""How much a tenant may use: cohorts, borrowing, lending, caps per class."""
