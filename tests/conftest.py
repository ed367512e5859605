"""Fixtures that all parts share."""

from tests.pool_fixtures import pool, start_pool

__all__ = ["pool", "start_pool"]
