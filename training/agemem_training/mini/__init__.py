"""A policy small enough to be trained from nothing on a CPU: its tokenizer, its model, its demonstrator."""
