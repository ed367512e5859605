"""The front end."""
