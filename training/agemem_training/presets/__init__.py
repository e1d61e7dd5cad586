"""Configurations that are shipped, as TOML files."""
