"""What comes from outside: documents, names and archives, read with limits."""
