"""Exchange with other programs' files."""
