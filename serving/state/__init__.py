"""What lists are made from, in memory."""
