"""Alembic's folder: how a journal of an older version becomes one of this version."""
