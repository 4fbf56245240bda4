"""Where a server is, and how bytes get there and back."""
