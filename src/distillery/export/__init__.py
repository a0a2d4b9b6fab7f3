"""Take a student away: finished runs as files that others load without Distillery."""
