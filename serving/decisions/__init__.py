"""What people decide: business rules and experiments, kept in SQL, read from memory."""
