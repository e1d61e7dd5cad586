"""The rules: what each operation does to memory and context."""
