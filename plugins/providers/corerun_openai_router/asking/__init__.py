"""How a question is written for a server that takes everything, or less."""
