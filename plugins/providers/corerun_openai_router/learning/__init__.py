"""How a refused request becomes one that is taken, and what is remembered of it."""
