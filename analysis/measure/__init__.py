"""What a record says: savings, ledger, burndown, census, and means over boots."""
