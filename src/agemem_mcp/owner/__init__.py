"""The process that owns a data folder and serves it to all the others."""
