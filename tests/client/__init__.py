"""Tests of the doors' client."""
