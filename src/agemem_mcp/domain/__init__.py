"""What memory and context are, independent of any store, protocol or model."""
