"""What is granted: the head of the ledger and its rules."""
