"""Programs that try to get out of a sandbox, and what it takes to see from outside whether they did."""
