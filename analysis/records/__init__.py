"""Records as they are stored: their form, found, read, checked, never changed."""
