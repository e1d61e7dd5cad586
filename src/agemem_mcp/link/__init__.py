"""How other processes reach the one that owns a data folder; standard library only, so that a client starts at once."""
