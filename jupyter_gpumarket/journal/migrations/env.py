"""Run by Alembic: migrates over the connection that `journal.upgrade` gives it, inside that one's transaction."""

from __future__ import annotations

from alembic import context

from jupyter_gpumarket.journal import schema

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=schema.metadata,
    transactional_ddl=True,
    version_table="journal_revision",
)
context.run_migrations()
