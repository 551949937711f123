"""Options kept in a file: read, checked, and given to a command as its defaults."""
