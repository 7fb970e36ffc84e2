"""A receive-only SMTP frontend that enforces policy while the sender is still on the line."""
