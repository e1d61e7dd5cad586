"""Prompt texts, as files."""
